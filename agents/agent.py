"""An agent apart from its training: how it is built, writes texts, and is saved as a Hugging Face folder.

SB3 gives the interface (learn, callbacks, loggers, predict); what it takes for texts is in sb3/token_algorithm.py. Its
pickled files are replaced by Hugging Face folders.

Nothing random is global: see `TrainingState`.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from accelerate import Accelerator
from stable_baselines3.common.type_aliases import GymEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.agents._signature import AlgorithmSettings
from rlgkd.agents.adaptation import AlphaSteering, FollowingTeacher
from rlgkd.agents.build import (
    build_optimizer,
    check_same_models,
    check_same_prompts,
    open_models,
    open_served_texts,
    shard_models,
    trainable_state,
    with_chosen_layers,
)
from rlgkd.agents.collect import Collector
from rlgkd.agents.config import CHANGEABLE, AlgorithmConfig
from rlgkd.agents.defaults import choices, with_choices
from rlgkd.agents.guards import Greatest
from rlgkd.agents.persistence import is_saved_teacher, read_agent, write_agent
from rlgkd.agents.probing import TeacherAnswers
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.sb3.env_wrappers import as_sb3, check_wrappers
from rlgkd.agents.sb3.policy import LanguageModelPolicy
from rlgkd.agents.sb3.token_algorithm import TokenAlgorithm
from rlgkd.agents.signature import document
from rlgkd.agents.sources import Sources
from rlgkd.agents.teachers import check_texts
from rlgkd.agents.watch import Watch
from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.item_checks import check_references, check_teacher_prompts
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.divergence import greatest
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.returns import overlong_penalty
from rlgkd.ranks import join
from rlgkd.rollout import sample_episodes
from rlgkd.secret_masks import masked
from rlgkd.settings import span
from rlgkd.sharding import whole
from rlgkd.teachers import RoutedTeachers, in_process, model_of
from rlgkd.teachers.names import is_self
from rlgkd.types import SIBLING, Item, Task, Trajectory


def _is_named(model: object) -> bool:
    """Whether a model, or each of several, is given by a name, which can be saved."""
    return all(map(_is_named, model.values())) if isinstance(model, Mapping) else isinstance(model, str | None)


_log = logging.getLogger(__name__)


class TextAgent(TokenAlgorithm):
    """A student, its teacher and its optimizer on an environment's task."""

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig

    def __init_subclass__(cls, **given: Any) -> None:
        """Give the class the signature and the `Args:` that follow from its settings."""
        super().__init_subclass__(**given)
        document(cls, TextAgent.__init__, cls.Config)

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: GymEnv | str,
        *,
        teacher: str | Path | PreTrainedModel | Mapping[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str = "auto",
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        **settings: Unpack[AlgorithmSettings],
    ) -> None:
        """Build student, teacher and optimizer.

        Args:
            policy: The student: a path, a hub name, `embedded:NAME`, `smollm2-135m`, or a loaded model, which is
                trained in place.
            env: A registered id, an environment of `rlgkd.envs` (scalar or vector) or an SB3 VecEnv of them. The agent
                takes its task (prompts, tokenizer, limits, reward) and decodes whole texts itself.
            teacher: As `policy`; `self`, the student as training finds it; a mapping of names to models, one for
                each text or all as one (docs/teachers.md); a server's address or a file of log-probabilities
                (docs/scale.md). May be left out only if alpha is 0.
            tokenizer: The student's, for a loaded model; by default the one of its name, else the environment's.
            device: `auto` or what `accelerate` uses anyway (`cpu` forces the CPU).
            seed: That of everything random.
            verbose: 0 or 1, as in SB3.
            tensorboard_log: Folder for TensorBoard events.
            stats_window_size: Episodes in SB3's `ep_info_buffer`.
            **settings: All settings of `Config`, listed in docs/settings.md.

        Raises: SettingError, ModelError, DependencyError.
        """
        if env is None:
            raise SettingError("env", env, "give an environment of rlgkd.envs, or a registered id")
        number: Any = seed
        if not isinstance(number, int | np.integer) or number < 0:
            raise SettingError("seed", seed, "give a whole number of 0 or more")
        if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
            raise ModelError("tokenizer", type(tokenizer).__name__, "give a loaded tokenizer of transformers")
        given: dict[str, Any] = dict(settings)
        named = {name for name, value in given.items() if value is not None and value != "auto"}
        # Built twice: what is chosen depends on the other settings (LoRA, alpha), which are to be checked first.
        chosen = choices(policy, self.Config(**with_choices(given, ())), named, str(device))
        for choice in chosen:
            _log.warning("chosen: %s", choice)
        self.config = self.Config(**with_choices(given, chosen))
        self.config.check_teacher(teacher)
        self.objective = self.config.objective_at(1.0)
        self.objective_schedules = (1.0, 0.0)
        """The remaining progress of `learn` at which the schedules of the objective begin and end."""
        self.rollout = Rollout()
        self.last_metrics: dict[str, Any] = {}
        self.ranks = join()
        self.accelerator = Accelerator(cpu=str(device) == "cpu")
        if self.accelerator.num_processes > self.ranks.size:  # started by mpirun, say
            raise SettingError("processes", self.accelerator.num_processes, "start them with torchrun (docs/scale.md)")
        if str(device) not in ("auto", self.accelerator.device.type, str(self.accelerator.device)):
            raise SettingError("device", device, f"accelerate runs on {self.accelerator.device}; give auto or cpu")
        super().__init__(
            policy=LanguageModelPolicy,  # SB3's actor-critic is not needed here
            env=as_sb3(env),
            learning_rate=self.config.optimizer.learning_rate,
            # SB3 requires these and shows them; none has a part in Eq. 5, whose knobs are in the objective.
            n_steps=1,
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=self.config.optimizer.max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log if self.ranks.main else None,
            verbose=verbose if self.ranks.main else 0,
            seed=seed,
            device=self.accelerator.device,
        )
        self._build(policy, teacher, tokenizer)
        check_same_prompts(self.ranks, self.task, self.collector.next_items(self.state)[0])

    def _build(
        self,
        policy: str | Path | PreTrainedModel,
        teacher: str | Path | PreTrainedModel | Mapping[str, Any] | None,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        """Open the models and build sources and optimizer."""
        policy = str(policy) if isinstance(policy, Path) else policy
        if isinstance(teacher, Mapping):
            teacher = {name: str(one) if isinstance(one, Path) else one for name, one in teacher.items()}
        teacher = str(teacher) if isinstance(teacher, Path) else teacher
        self._given_teacher = teacher
        models = {"policy": policy, "teacher": teacher}
        self._names = {role: model for role, model in models.items() if _is_named(model)}
        self._setup_lr_schedule()
        assert self.env is not None
        check_wrappers(self.env)
        config, seed = self.config, self.seed or 0
        self.task: Task = self.env.get_attr("task")[0]
        self.split: str = self.env.get_attr("split")[0]
        self._check_task(config)
        config, opened = with_chosen_layers(self.task, config, policy, tokenizer, self.device)
        self.config = config
        self.student, self.teacher = open_models(
            self.task,
            config,
            policy=policy,
            teacher=teacher,
            tokenizer=tokenizer,
            seed=seed,
            device=self.device,
            opened=opened,
        )
        check_same_models(self.ranks, self.student, self.teacher)
        shard_models(self.ranks, self.student, self.teacher, config.model.sharding)
        self.trained_parts: dict[str, torch.nn.Module] = {"student": trainable_state(self.student.module)}
        decay = config.teacher.teacher_decay
        self.following_teacher = None
        if decay is not None and isinstance(self.teacher, LanguageModel):
            self.following_teacher = FollowingTeacher(self.student, self.teacher, decay)
            if self.teacher.module is not self.student.module:
                self.trained_parts["teacher"] = self.teacher.module
        self.served_texts = open_served_texts(self.task, config, self.student, seed=seed, ranks=self.ranks)
        self.watch = Watch(self._greatest(), speaks=self.ranks.main)
        self._follow(config)
        self.sources.check_file(self.split, config.sampling.train_prompts)
        if (teachers := model_of(self.teacher)) is not None:
            check_teacher_prompts(teachers, self.task, self.split, seed)
        self.policy: LanguageModelPolicy = LanguageModelPolicy(  # type: ignore[assignment]  # no actor-critic
            self.observation_space, self.action_space, self.student, seed=seed
        )
        self.policy.optimizer = build_optimizer(self.student.module, config, self.lr_schedule, self.device)
        # SB3's learn hands a buffer to collect_rollouts; a sequence is one sample here, so there is none.
        self.rollout_buffer = None  # type: ignore[assignment]

    def _check_task(self, config: AlgorithmConfig) -> None:
        """Refuse settings that the task does not go with.

        Raises: SettingError; DataError where references are trained on that are not there.
        """
        if buffer := config.reward.overlong_buffer:
            overlong_penalty(torch.zeros(0, device="cpu"), self.task.max_new_tokens, buffer)  # refuses a longer one
        if span(config.student_fraction)[0] < 1 and config.sampling.off_policy == "references":
            check_references(self.task, self.split, self.seed or 0)

    def _follow(self, config: AlgorithmConfig) -> None:
        """Build from the settings what depends on nothing that is trained."""
        target, seed = config.teacher.divergence_target, self.seed or 0
        self.steering = None if target is None else AlphaSteering(target, config.teacher.alpha_rate)
        self.sources = Sources(
            self.student, self.teacher, self.task, seed=seed, sampling=config.sampling, ranks=self.ranks
        )
        self.collector = Collector(
            self.sources, config, split=self.split, seed=seed, ranks=self.ranks, served=self.served_texts
        )
        self.teacher_answers = None
        if config.asks_teacher_answers:
            writer, number = model_of(self.teacher), config.teacher.teacher_probes
            assert writer is not None, "check_teacher has refused it"
            self.teacher_answers = TeacherAnswers(writer, self.task, number=number, seed=seed, ranks=self.ranks)

    def reconfigure(self, config: AlgorithmConfig, *, schedules: tuple[float, float] = (1.0, 0.0)) -> None:
        """Train by other settings of the objective from the next update on; models, optimizer and state stay.

        Args:
            config: Settings of the agent's own class. What differs from its present settings is among CHANGEABLE.
            schedules: The remaining progress of `learn` at which schedules of the objective begin and end.

        Raises: SettingError for another setting that differs, or one that teacher or task do not go with.

        Example: `agent.reconfigure(agent.Config(**{**agent.config.flat(), "alpha": 0.0}))`.
        """
        self.check_change(config)
        self.config, self.objective_schedules = config, schedules
        self.objective = config.objective_at(1.0)
        self._follow(config)
        self.max_grad_norm = config.optimizer.max_grad_norm
        self.learning_rate = config.optimizer.learning_rate
        self._setup_lr_schedule()
        self.watch.greatest = self._greatest()
        self.watch.begin_again()

    def _greatest(self) -> Greatest:
        divergence = greatest(self.objective.divergence.function)
        return Greatest(entropy=math.log(self.student.vocabulary), divergence=divergence)

    def check_change(self, config: AlgorithmConfig) -> None:
        """Refuse settings with which `reconfigure` could not go on.

        Raises: SettingError; DataError where references are trained on that are not there.
        """
        old, new = self.config.flat(), config.flat()
        for name in {**old, **new}:
            if name not in CHANGEABLE and old.get(name) != new.get(name):
                raise SettingError(name, new.get(name), f"what was built by it is kept; leave it at {old.get(name)!r}")
        config.check_teacher(self._given_teacher)
        if (
            self.teacher is not None
            and not in_process(self.teacher)
            and config.known_tokens != self.config.known_tokens
        ):
            known = self.config.known_tokens
            remedy = f"the teacher is asked for {'all' if known is None else known} of its tokens; leave that as it is"
            raise SettingError("teacher_top_k", config.known_tokens, remedy)
        check_texts(self.teacher, config)
        self._check_task(config)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Refuse another environment: its task, tokenizer and limits are those that the agent was built for."""
        raise SettingError("env", type(env).__name__, "build an agent on it, or load(path, env=...) a saved one")

    @property
    def trajectories(self) -> list[Trajectory]:
        """Those of the latest update; without what was replayed."""
        return self.rollout.fresh

    @property
    def modules(self) -> torch.nn.Module:
        """The models that training changes, which a checkpoint holds with the optimizer and the state."""
        parts = self.trained_parts
        return parts["student"] if len(parts) == 1 else torch.nn.ModuleDict(parts)

    def teacher_prompt_of(self, trajectory: Trajectory) -> str | None:
        """What a teacher that sees more reads before the text's first action, special tokens and all.

        None for one that sees what the student sees, or that has nothing to say of this text.
        """
        models = model_of(self.teacher)
        teacher = models.of(trajectory.item) if isinstance(models, RoutedTeachers) else models
        form = None if teacher is None else teacher.format
        if form is None or not form.template or (form.reads_sibling and SIBLING not in trajectory.item.columns):
            return None
        return str(self.student.tokenizer.decode(form.encode_prompt(trajectory.item), skip_special_tokens=False))

    def autocast(self) -> torch.autocast:
        """The precision of sampling and scoring, the same in both."""
        mixed = self.config.optimizer.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        greedy: bool = True,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Complete prompts in the environment's format, one turn each, and return the texts.

        A collective call where the student is shared out over processes.

        The filters (rlgkd.ops.logit_filters) and `temperature` need `greedy=False`. Training has no filters: they
        change what a policy can generate. Temperature and limit are those of training unless given.

        Raises: SettingError, DataError.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise DataError("prompts", prompts, "give a list of texts")
        if not prompts:
            return []
        filters = Filters(top_k=top_k, top_p=top_p, min_p=min_p)
        student, task = self.student, self.task
        if temperature is not None:
            student = student.at_temperature(temperature)
            if greedy:
                raise SettingError(
                    "greedy", greedy, "the likeliest token is so at any temperature; set greedy to False"
                )
        if max_new_tokens is not None:
            if max_new_tokens < 1:
                raise SettingError("max_new_tokens", max_new_tokens, "give a whole number of 1 or more")
            task = copy.copy(task)
            task.max_new_tokens = max_new_tokens
        items = [Item(key=f"generate/{n}", prompt=prompt) for n, prompt in enumerate(prompts)]
        with whole(student):
            episodes = sample_episodes(
                student, task, items, seed=seed, greedy=greedy, filters=filters, single_turn=True
            )
        return [episode.text for episode in episodes]

    def evaluate(self, *, split: str = "test", prompts: int = 256, **settings: Any) -> Evaluation:
        """Measure the student, as it is now, on a split's first prompts, with the teacher's divergence if there is one.

        A collective call where there are several processes. `settings` are those of `rlgkd.evaluation.evaluate`, as are
        the measures.
        """
        settings = {"split": split, "prompts": prompts, "ranks": self.ranks, **settings}
        return evaluate(self.student, self.teacher, self.task, **settings)

    def __repr__(self) -> str:
        """Its class, models, task and alpha."""
        student, teacher = (masked(self._names).get(role, "a loaded model") for role in ("policy", "teacher"))
        return f"{type(self).__name__}({student}, teacher={teacher}, {self.task.name}, alpha={self.objective.alpha:g})"

    def save(  # type: ignore[override]
        self, path: str | Path, exclude: Any = None, include: Any = None
    ) -> None:
        """Write a Hugging Face folder with the model and the agent's settings. SB3's `.zip` ending is dropped.

        It holds no optimizer: to go on exactly, use a checkpoint (`rlgkd.checkpoint`; `rlgkd train` writes them). Of
        several processes the main one alone writes; if they share the weights out, all of them have to call it. What an
        older call wrote there is replaced when all is written.

        Raises: CheckpointError if it cannot be written.
        """
        with self.whole():
            if self.ranks.main:
                settings = {**masked(self._names), "seed": self.seed, **self.config.flat()}
                parts = (self.student, self._unnamed_teacher, settings, self.state, self._write_parts)
                write_agent(path, type(self).__name__, *parts)

    def whole(self) -> AbstractContextManager[None]:
        """A block within which each process can read all weights that `save` writes; see `rlgkd.sharding.whole`."""
        return whole(self.student, self._unnamed_teacher)

    @property
    def _unnamed_teacher(self) -> LanguageModel | None:
        """A teacher that no name opens again: one that moved, or the start of a student that was cut or given."""
        teacher = self.teacher
        if not isinstance(teacher, LanguageModel) or teacher.module is self.student.module:
            return None
        named = isinstance(self._names.get("policy"), str) and not self.config.model.student_layers
        name = self._names.get("teacher")
        of_the_start = (isinstance(name, str) and is_saved_teacher(name)) or (is_self(name) and not named)
        return teacher if self.following_teacher is not None or of_the_start else None

    def _write_parts(self, folder: Path) -> None:
        """Write what an agent has besides models and settings into the folder that `save` makes."""

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: GymEnv | str | None = None, **settings: Any
    ) -> Self:
        """Open what `save` wrote, on `env`; `settings` override the saved ones.

        A teacher that was a loaded model and schedules that were functions are not saved: give them again.

        Raises: CheckpointError if the folder is not an agent's; SettingError for what must be given.
        """
        saved, state = read_agent(path, cls.__name__, cls.Config, settings)
        if env is None:
            raise SettingError("env", env, "give the environment to go on in, for its prompts, limits and reward")
        agent = cls(env=env, **saved)
        agent.state = state
        if "alpha" in settings or agent.steering is None:
            agent.state.alpha = None  # what an older training steered it to is not what was asked for now
        return agent
