"""The settings of a run: an agent's, and what stands around it. reading.py has how they are read and checked.

Outside, all are one flat list of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import torch
from annotated_types import Ge, Le, Lt, MinLen
from pydantic import BeforeValidator, Field, model_validator

from rlgkd import agents
from rlgkd.agents.agent_settings import Count, Positive
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.envs.registry import text_env_ids
from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.objective import Fraction
from rlgkd.scripts.config.stages import Stage, stages_of
from rlgkd.secret_masks import masked
from rlgkd.settings import Settings
from rlgkd.teachers.names import is_self

BRINGS_MODELS = {
    "rlgkd/GroundedSummary-v0": "embedded:grounded",
    "rlgkd/Arithmetic-v0": "embedded:arithmetic",
    "rlgkd/Translate-v0": "embedded:translate",
}
"""Environments with a student and a teacher of their own, which are the default there."""
AgentName = Literal["Reinforce", "RLOO", "GRPO", "PPO", "Distill"]


def _names(value: object) -> object:
    """A text with commas as the list of its names."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _mappings(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(isinstance(part, Mapping) for part in value):
        raise SettingError(
            "stages", value, "give a list of stages, each with names and values: [{alpha: 1, until: 0.5}, ...]"
        )
    return value


class RunConfig(Settings):
    """Everything that decides a run."""

    owner = "a run"

    name: str = "run"
    """Shown in the report; names the default folder."""
    env: str = "rlgkd/GroundedSummary-v0"
    """Registered id of the environment (rlgkd list envs)."""
    env_settings: dict[str, Any] = Field(default_factory=dict)
    """Passed to the environment, each as env_settings.NAME=value."""
    agent: AgentName = "Reinforce"
    """The algorithm."""
    student: str = ""
    """Model that is trained; by default the environment's own, if it brings one."""
    teacher: str | dict[str, str] = ""
    """Model that the student stays close to, or names and models; self for its start; by default the environment's."""
    tokens: Count = 200_000
    """Tokens to train for: generated ones, or read from data."""
    learning_rate_end: Fraction = 0.1
    """Fraction of the learning rate left at the end, reached linearly."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.02
    """Share of the tokens over which the learning rate rises from 0."""
    device: str = "auto"
    """The device: auto or cpu."""
    threads: Annotated[int, Ge(0), Le(4096)] = 0
    """CPU threads; 0 leaves torch's choice."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of everything random."""
    eval_split: str = "test"
    """Split of the evaluation before and after."""
    eval_prompts: Count = 256
    """Prompts of the evaluation; for larger models on a CPU fewer, if not given (docs/defaults.md)."""
    eval_seed: Annotated[int, Ge(0)] = 0
    """Seed of the evaluation's prompts and samples: the same whatever the seed of training."""
    eval_forward_kl: bool = False
    """Whether evaluations measure KL(teacher || student), too, on the student's texts and on references."""
    eval_every: Annotated[int, Ge(0)] = 0
    """Tokens between evaluations on held-out prompts while it trains; 0 is none."""
    eval_every_prompts: Count = 64
    """Prompts of each of these evaluations."""
    eval_every_split: str = "validation"
    """Their split: another than eval_split, if a model is chosen by them."""
    keep_best: str | None = None
    """Measure by which the best model of these evaluations is kept in the folder best; -NAME if less is better."""
    patience: Annotated[int, Ge(0)] = 0
    """So many of these evaluations in a row without a better keep_best end the training; 0 never ends it."""
    stages: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_mappings)] = ()
    """Parts of the run with their own settings of the objective, one after another (docs/stages.md)."""
    checkpoint_every: Count = 50
    """Updates between checkpoints."""
    trackers: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Trackers that get the run: wandb, trackio, mlflow, or a class as file.py:Class (docs/trackers.md)."""
    tracker_project: Annotated[str, MinLen(1)] = "rlgkd"
    """The trackers' project, or experiment."""
    tracker_texts: Annotated[int, Ge(0)] = 8
    """Texts of an update that trackers get as rows of a table; 0 for none."""
    tracker_texts_every: Count = 10
    """Updates between two such tables."""
    checkpoint_minutes: Annotated[float, Ge(0)] = 15.0
    """Minutes after which the next whole update has a checkpoint, whatever checkpoint_every; 0 is never."""
    checkpoint_format: Literal["whole", "sharded"] = "whole"
    """How checkpoints hold weights and moments: whole, as one process has them, or each process's (docs/scale.md)."""
    process_timeout: Positive = 30.0
    """Minutes that a process waits for the others, if there are several (docs/scale.md)."""
    algorithm: AlgorithmConfig = AlgorithmConfig()

    def __init__(self, **given: Any) -> None:
        """Build from flat names: a run's own, and those that its agent takes.

        Raises: SettingError for an unknown name, a value that does not work, or a student that is missing.
        """
        own = {name: value for name, value in given.items() if name in RunConfig.model_fields}
        if "algorithm" not in own:
            agent = own.get("agent") or RunConfig.model_fields["agent"].default
            rest = {name: value for name, value in given.items() if name not in own}
            if agent in get_args(AgentName):  # else it is refused below
                own["algorithm"] = config_of(agent)(**_taken(agent, rest))
        super().__init__(**_with_models(own))

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> Self:
        if self.keep_best is not None and not self.eval_every:
            raise SettingError("keep_best", self.keep_best, "set eval_every, the tokens between evaluations")
        if self.patience and self.keep_best is None:
            raise SettingError("patience", self.patience, "set keep_best, the measure that it waits for")
        if self.checkpoint_format == "sharded" and torch.__version__ < "2.9":  # it compares as versions do
            remedy = f"torch {torch.__version__} does not write such; install 2.9 or a later one, or set it to whole"
            raise SettingError("checkpoint_format", "sharded", remedy)
        _ = self.parts
        return self

    @property
    def parts(self) -> tuple[Stage, ...]:
        """The stages; of a run without any, the whole as one.

        Raises: SettingError.
        """
        given = self.stages or ({},)
        own = RunConfig.model_fields
        return stages_of(given, self.algorithm, tokens=self.tokens, evaluates=self.eval_every > 0, of_run=own)

    def in_stage(self, number: int) -> RunConfig:
        """The run with the settings of a stage, counted from 0, as its own."""
        return self.model_copy(update={"algorithm": self.parts[number].algorithm}) if self.stages else self

    @property
    def algorithm_class(self) -> type[TextAlgorithm]:
        """The agent's class."""
        return agent_class(self.agent)

    @property
    def teacher_is_start(self) -> bool:
        """Whether the teacher's weights are those of the student when training begins."""
        model, teacher = self.algorithm.model, self.algorithm.teacher
        if is_self(self.teacher):
            return True
        as_opened = (teacher.teacher_dtype, teacher.teacher_device, teacher.teacher_quantization)
        return self.teacher == self.student and not model.student_layers and as_opened == (model.dtype, None, None)

    @property
    def shown_teacher(self) -> str:
        """The teacher in a line, without secrets; of several each with its name."""
        known = masked(self.teacher)
        return ", ".join(f"{name}: {one}" for name, one in known.items()) if isinstance(known, dict) else str(known)

    @property
    def teacher_writes_as_start(self) -> bool:
        """Whether the teacher's texts are the student's when training begins, for it reads the same prompts too."""
        return self.teacher_is_start and self.algorithm.teacher.teacher_prompt is None

    def learning_rate(self, remaining: float) -> float:
        """Learning rate at this remaining progress (1 to 0): linear warm-up, then linear decay."""
        peak = self.algorithm.optimizer.learning_rate
        assert not callable(peak)
        done = 1.0 - remaining
        if done < self.warmup:
            return peak * max(done / self.warmup, 0.01)
        return peak * (1 - (1 - self.learning_rate_end) * (done - self.warmup) / (1 - self.warmup))

    def with_layers(self, layers: int | tuple[int, ...]) -> RunConfig:
        """The settings with these `student_layers`, as an agent has chosen them from a number."""
        model = self.algorithm.model.model_copy(update={"student_layers": layers})
        return self.model_copy(update={"algorithm": self.algorithm.model_copy(update={"model": model})})

    def agent_arguments(self) -> dict[str, Any]:
        """What the agent's constructor takes, besides the environment."""
        return {
            **self.algorithm.flat(),
            "policy": self.student,
            "teacher": self.teacher or None,
            "learning_rate": self.learning_rate,
            "device": self.device,
            "seed": self.seed,
        }


def agent_class(name: str) -> type[TextAlgorithm]:
    """The agent of this name."""
    algorithm: type[TextAlgorithm] = getattr(agents, name)
    return algorithm


def config_of(name: str) -> type[AlgorithmConfig]:
    """The settings of the agent of this name."""
    return agent_class(name).Config


def setting_names() -> list[str]:
    """Every flat name of a run's settings, whatever its agent."""
    own = [name for name in RunConfig.model_fields if name != "algorithm"]
    of_agents = [name for agent in get_args(AgentName) for name in config_of(agent).declared()]
    return list(dict.fromkeys([*own, *of_agents]))


def _taken(agent: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings of other agents, which are accepted at their defaults, as files of all settings hold them.

    Raises: SettingError for one at another value.
    """
    taken = dict(given)
    for other in get_args(AgentName):
        for name, setting in config_of(other).declared().items():
            if name not in taken or name in config_of(agent).declared():
                continue
            if (value := taken.pop(name)) not in (None, setting.default):
                raise SettingError(name, value, f"{agent} does not take it; set agent to {other}")
    return taken


def _with_models(given: Mapping[str, Any]) -> dict[str, Any]:
    """With the environment's own student and teacher where nothing is said of one.

    Raises: SettingError if a student is needed and the environment brings none.
    """
    env = given.get("env") or RunConfig.model_fields["env"].default
    models = BRINGS_MODELS.get(env) if isinstance(env, str) else None
    filled = {"teacher": f"{models}-teacher" if models else "", **given}
    filled["teacher"] = filled["teacher"] or ""
    if models and not filled.get("student"):
        filled["student"] = f"{models}-student"
    if filled.get("student") or not isinstance(env, str):
        return filled
    if ":" not in env and env not in text_env_ids():
        raise SettingError("env", env, unknown_remedy(env, text_env_ids()))
    remedy = f"{env} brings no models: name one with student=..., and set teacher=... or alpha=0"
    raise SettingError("student", "", remedy)
