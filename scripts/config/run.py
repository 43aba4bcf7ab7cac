"""The settings of a run: typed, from a recipe or a YAML file, overridden by `key=value`; unknown keys are refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rlgkd.envs.registry import text_env_ids
from rlgkd.errors import SettingError, one_line
from rlgkd.ops._registry import keywords
from rlgkd.ops.divergence import DIVERGENCES
from rlgkd.ops.schedule import Schedule, between
from rlgkd.scripts.config.paths import settled

RECIPES = Path(__file__).parents[1] / "recipes"
OF_THE_RUN = {
    "name", "env", "env_settings", "agent", "student", "tokens", "alpha_end", "alpha_shape", "student_fraction_end",
    "student_fraction_shape", "learning_rate_end", "warmup", "threads", "eval_split", "eval_prompts",
    "eval_seed", "checkpoint_every",
}  # fmt: skip
"""Settings that are not the agent's."""
BRINGS_MODELS = {f"rlgkd/{env}-v0": f"embedded:{models}" for env, models in (
    ("GroundedSummary", "grounded"), ("Arithmetic", "arithmetic"), ("Translate", "translate"),
)}  # fmt: skip
"""Environments with a student and a teacher of their own, which are the default there."""
OF_THE_ENVIRONMENT = ("env_settings", "student", "student_layers", "teacher")
"""Settings of a recipe that mean nothing on another environment."""
OF_A_DIVERGENCE = ("beta", "skew", "normalized")
OF_PPO = ("gae_lambda", "value_coefficient", "value_clip", "normalise_advantages")
SHAPE = Literal["linear", "cosine", "exponential"]


class RunSettings(BaseModel):
    """Everything that decides a run. What the agents take keeps their names (see rlgkd.agents)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("run", description="shown in the report; names the default folder")
    env: str = Field("rlgkd/GroundedSummary-v0", description="registered id of the environment (rlgkd list envs)")
    env_settings: dict[str, Any] = Field(
        default_factory=dict, description="passed to the environment, each as env_settings.NAME=value"
    )
    agent: Literal["Reinforce", "RLOO", "GRPO", "PPO", "Distill"] = Field(
        "Reinforce", description="the algorithm: Reinforce, RLOO, GRPO, PPO or Distill"
    )
    student: str = Field("", description="model that is trained; by default the environment's own, if it brings one")
    student_layers: list[int] = Field(
        default_factory=list, description="keep only these layers of the student; all where empty"
    )
    teacher: str = Field(
        "", description="model that the student stays close to; null for none; by default the environment's own"
    )
    tokens: int = Field(200_000, ge=1, description="tokens to train for: generated ones, or read from data")
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the divergence in Eq. 5: 0 pure RL, 1 pure distillation; null is the agent's own",
    )
    alpha_end: float | None = Field(None, ge=0, le=1, description="where alpha goes to; null keeps it constant")
    alpha_shape: SHAPE = Field("linear", description="of alpha's way to alpha_end: linear, cosine or exponential")
    divergence: str = Field(
        "reverse_kl",
        description="how the student differs from the teacher (rlgkd list divergences); in files and commands jsd(0.9) "
        "is jsd with beta 0.9",
    )
    beta: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of jsd: the teacher's weight in the mixture, near 0 like forward KL, near 1 like reverse",
    )
    normalized: bool = Field(
        False, description="of jsd: divide by beta (1 - beta), so that the scale stays when beta is varied"
    )
    skew: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of skew_forward_kl and skew_reverse_kl: share of the first in the second; null is their own",
    )
    teacher_top_k: int | None = Field(
        None, ge=1, description="how many of the teacher's likeliest tokens the divergence sees; null is all"
    )
    combination: Literal["in_loss", "in_reward"] = Field(
        "in_loss",
        description="where the divergence joins the reward: in_loss beside the advantage, in_reward before it",
    )
    divergence_target: float | None = Field(
        None, gt=0, description="nats at which the divergence is held by steering alpha; null leaves alpha alone"
    )
    alpha_rate: float = Field(0.1, gt=0, description="the most that the log-odds of a steered alpha move at an update")
    teacher_decay: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the teacher that stays at each step, the rest becomes the student; null leaves it alone",
    )
    student_fraction: float = Field(1.0, ge=0, le=1, description="share of batches sampled from the student")
    student_fraction_end: float | None = Field(
        None, ge=0, le=1, description="where student_fraction goes to; null keeps it constant"
    )
    student_fraction_shape: SHAPE = Field(
        "linear", description="of student_fraction's way to its end: linear, cosine or exponential"
    )
    mixture: Literal["batch", "prompt"] = Field(
        "batch", description="what the coin of student_fraction is thrown for: each batch or each prompt"
    )
    off_policy: Literal["references", "teacher"] = Field(
        "references", description="what the texts are that the student does not sample: references or the teacher's"
    )
    teacher_texts: str | None = Field(None, description="file that keeps the teacher's texts; null draws them anew")
    behaviour: str | None = Field(
        None, description="who samples beside the student (rlgkd list behaviours); null: the student alone"
    )
    teacher_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of behaviour teacher_mixed: the teacher's weight in what is sampled from; null is its own",
    )
    kept_top_k: int | None = Field(
        None,
        ge=1,
        description="of behaviour interleaved: its token stays if the teacher ranks it so high; null is its own",
    )
    estimator: Literal["exact", "sampled", "sampled_centred", "k2", "k3"] = Field(
        "exact",
        description="of the divergence's gradient: exact, or by the sampled token: sampled, sampled_centred, k2, k3",
    )
    horizon: float = Field(0.0, ge=0, le=1, description="how much of the later divergence a token answers for")
    advantage: str | None = Field(
        None, description="what rewards become (rlgkd list advantages); null is the agent's own"
    )
    policy_loss: str | None = Field(None, description="reinforce, clipped or clipped_weight; null is the agent's own")
    policy_reduction: str | None = Field(
        None, description="as divergence_reduction, of the policy term; null is the agent's own"
    )
    divergence_reduction: str = Field(
        "sequence_mean", description="how the divergence averages: sequence_mean, token_mean, sequence_sum or constant"
    )
    clip_low: float | None = Field(
        None, ge=0, le=1, description="of the clipped losses: how far below 1 a ratio counts; null is the loss's own"
    )
    clip_high: float | None = Field(
        None, ge=0, description="of the clipped losses: how far above 1 a ratio counts; null is the loss's own"
    )
    ratio: Literal["token", "sequence"] | None = Field(
        None, description="what the clipped losses take ratios of: each token or the sequence; null is the agent's own"
    )
    entropy_bonus: float = Field(0.0, ge=0, description="weight of the policy's entropy, in reward per nat")
    drop_even_groups: bool = Field(
        False, description="leave out of the policy term a prompt whose samples all earned the same"
    )
    overlong_buffer: int = Field(0, ge=0, description="last tokens before the limit, over which a penalty grows to 1")
    normalise_rewards: bool = Field(False, description="divide rewards by the deviation of all that were seen so far")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="of PPO: 0 trusts the values alone, 1 the rewards alone")
    value_coefficient: float = Field(0.1, ge=0, description="of PPO: weight of the value head's loss")
    value_clip: float | None = Field(0.2, ge=0, description="of PPO: how far a value may move; null lets it go")
    normalise_advantages: bool = Field(True, description="of PPO: bring the batch's to mean 0 and deviation 1")
    temperature: float = Field(1.0, gt=0, description="of the student, in sampling and scoring")
    teacher_temperature: float = Field(1.0, gt=0, description="of the teacher, in scoring and writing")
    prompts_per_update: int = Field(16, ge=1, description="prompts of one update")
    train_prompts: int | None = Field(None, ge=1, description="train on this many alone; null takes as many as come")
    group_size: int = Field(4, ge=1, description="samples of each prompt")
    epochs: int = Field(1, ge=1, description="steps of the optimizer on each rollout")
    learning_rate: float = Field(1e-4, gt=0, description="of AdamW, after the warm-up")
    learning_rate_end: float = Field(
        0.1, ge=0, le=1, description="fraction of the learning rate left at the end, reached linearly"
    )
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the tokens over which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="the gradient is scaled down to this norm")
    token_budget: int = Field(16384, ge=1, description="tokens of one micro-batch, padding included")
    rows_at_once: int | None = Field(None, ge=1, description="texts that are written at a time; null: all of an update")
    compile_decoding: bool = Field(False, description="torch.compile a step of writing, on CUDA as a graph")
    lora_rank: int = Field(0, ge=0, description="train LoRA adapters of this rank alone; 0 trains the whole student")
    lora_alpha: int | None = Field(None, ge=1, description="they are scaled by lora_alpha / lora_rank; null: by 2")
    gradient_checkpointing: bool = Field(False, description="compute inner values anew: slower, less memory")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is mixed precision")
    device: str = Field("auto", description="auto or cpu")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    seed: int = Field(0, ge=0, description="of everything random")
    eval_split: str = Field("test", description="split of the evaluation before and after")
    eval_prompts: int = Field(256, ge=1, description="prompts of the evaluation")
    eval_seed: int = Field(
        0, ge=0, description="of the evaluation's prompts and samples: the same whatever the seed of training"
    )
    checkpoint_every: int = Field(50, ge=1, description="updates between checkpoints")

    @field_validator("teacher", mode="before")
    @classmethod
    def _no_teacher(cls, given: Any) -> Any:
        return "" if given is None else given

    def schedule(self, remaining: float) -> float:
        """Learning rate at this remaining progress (1 to 0): linear warm-up, then linear decay."""
        done = 1.0 - remaining
        if done < self.warmup:
            return self.learning_rate * max(done / self.warmup, 0.01)
        return self.learning_rate * (1 - (1 - self.learning_rate_end) * (done - self.warmup) / (1 - self.warmup))

    def agent_settings(self) -> dict[str, Any]:
        """What the agent's constructor takes, beside the environment."""
        others = OF_THE_RUN if self.agent == "PPO" else OF_THE_RUN.union(OF_PPO)
        return {
            **self.model_dump(exclude=others), "policy": self.student, "teacher": self.teacher or None,
            "alpha": self._way("alpha"), "student_fraction": self._way("student_fraction"),
            "learning_rate": self.schedule,
        }  # fmt: skip

    def _way(self, name: str) -> float | Schedule | None:
        """A setting as it is, or its schedule where it has an end."""
        start, end = getattr(self, name), getattr(self, f"{name}_end")
        if start is None or end is None:
            return cast(float | None, start)
        return between(getattr(self, f"{name}_shape"), start, end)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read(source: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Settings from a recipe's name or a YAML file, with `key=value` overrides (values in YAML).

    Paths in a file are looked up from its folder, then from the current one; those of overrides from the current one.
    A recipe's models and settings of the environment belong to its own: on another environment they fall away.

    Raises: SettingError for an unknown recipe, a missing or malformed file, an unknown key or a value out of range.
    """
    path = Path(source)
    is_recipe = path.suffix not in (".yaml", ".yml")
    if is_recipe:
        path = RECIPES / f"{source}.yaml"
        if not path.is_file():
            raise SettingError("recipe", str(source), f"{nearest(str(source), recipe_names())}, or a .yaml file")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError("settings", str(source), f"it could not be read: {one_line(error, 200)}") from error
    if not isinstance(values, dict):
        raise SettingError("settings", str(source), "write `key: value` lines")
    values = taken_apart({key: settled(key, value, [path.parent, Path()]) for key, value in values.items()})
    chosen = override(values, overrides)
    ours, theirs = (given.get("env", RunSettings.model_fields["env"].default) for given in (chosen, values))
    if is_recipe and ours != theirs:
        return check(override({k: v for k, v in values.items() if k not in OF_THE_ENVIRONMENT}, overrides))
    return check(chosen)


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `key=value` and `env_settings.NAME=value` put in their places, paths from the current folder.

    Raises: SettingError for an override that is not of that form, or whose value is no YAML.
    """
    typed: dict[str, Any] = {}
    for given in overrides:
        key, equals, text = given.partition("=")
        if not equals:
            raise SettingError("argument", given, "write overrides as key=value")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            quoted = text.replace('"', r"\"")
            remedy = f"it is no YAML value; if it is a text, write '{key}=\"{quoted}\"'"
            raise SettingError(key, text, remedy) from error
        if key.startswith("env_settings."):
            name = key.removeprefix("env_settings.")
            before = typed.get("env_settings", values.get("env_settings")) or {}
            key, value = "env_settings", {**before, name: settled(name, value, [Path()])}
        else:
            value = settled(key, value, [Path()])
        typed[key] = value
    return over(values, typed)


def spelt(divergence: str) -> dict[str, Any]:
    """A divergence as papers write it, as settings.

    Raises: SettingError for what stands in brackets and is no number, or behind a divergence that takes none.

    Example:
        >>> spelt("jsd(0.9)"), spelt("reverse_kl")
        ({'divergence': 'jsd', 'beta': 0.9}, {'divergence': 'reverse_kl'})
    """
    name, bracket, text = divergence.partition("(")
    if not bracket:
        return {"divergence": divergence}
    taken = [key for key in OF_A_DIVERGENCE if name in DIVERGENCES and key in keywords(DIVERGENCES[name])]
    try:
        return {"divergence": name, taken[0]: float(text[: text.index(")", len(text) - 1)])}
    except (IndexError, ValueError):
        raise SettingError("divergence", divergence, "write a name alone, or jsd(BETA) or a skew KL(SKEW)") from None


def taken_apart(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `spelt`'s settings in the place of a divergence. Raises: SettingError for a contradiction."""
    if not isinstance(divergence := values.get("divergence"), str):
        return dict(values)
    found = spelt(divergence)
    for key in set(found) - {"divergence"}:
        if values.get(key) not in (None, found[key]):
            raise SettingError(key, values[key], f"divergence is {divergence}; say it once")
    return {**values, **found}


def over(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen` over values; with another divergence, what belonged to the one before falls away.

    Raises: SettingError as `spelt`.
    """
    if isinstance(divergence := chosen.get("divergence"), str):
        own = spelt(divergence)
        taken = keywords(DIVERGENCES[own["divergence"]]) - set(own) if own["divergence"] in DIVERGENCES else ()
        values = {key: value for key, value in values.items() if key not in OF_A_DIVERGENCE or key in taken}
    return {**values, **chosen}


def check(values: Mapping[str, Any]) -> RunSettings:
    """Typed settings from plain values, the environment's own models where none are named; one line for a complaint.

    Raises: SettingError.
    """
    values = taken_apart(values)
    for key in values:
        if key not in RunSettings.model_fields:
            raise SettingError("setting", key, nearest(str(key), list(RunSettings.model_fields)))
    try:
        settings = RunSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        about = RunSettings.model_fields[str(first["loc"][0])].description
        message = first["msg"][0].lower() + first["msg"][1:]
        raise SettingError(field, first["input"], f"{message} ({about})") from error
    settings = _with_models(settings)
    for field in OF_PPO:
        if settings.agent != "PPO" and getattr(settings, field) != RunSettings.model_fields[field].default:
            raise SettingError(field, getattr(settings, field), f"{settings.agent} does not take it; set agent to PPO")
    for name in ("alpha", "student_fraction"):
        if getattr(settings, f"{name}_shape") != "linear" and getattr(settings, f"{name}_end") is None:
            raise SettingError(
                f"{name}_shape", getattr(settings, f"{name}_shape"), f"say where it goes, with {name}_end"
            )
    if settings.alpha_end is not None and settings.alpha is None:
        raise SettingError("alpha_end", settings.alpha_end, "say where it begins, with alpha")
    return settings


def dump(settings: RunSettings) -> str:
    """The settings as YAML that runs again as it is."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def _with_models(settings: RunSettings) -> RunSettings:
    """With the environment's own student and teacher where the settings say nothing of one.

    Raises: SettingError where a student is wanted and the environment brings none.
    """
    own = BRINGS_MODELS.get(settings.env)
    if own and "teacher" not in settings.model_fields_set:
        settings = settings.model_copy(update={"teacher": f"{own}-teacher"})
    if own and not settings.student:
        settings = settings.model_copy(update={"student": f"{own}-student"})
    if settings.student:
        return settings
    if ":" not in settings.env and settings.env not in text_env_ids():
        raise SettingError("env", settings.env, nearest(settings.env, text_env_ids()))
    raise SettingError(
        "student", "", f"{settings.env} brings no models: name one with student=..., and set teacher=... or alpha=0"
    )


def nearest(name: str, known: Sequence[str]) -> str:
    """A remedy for an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
