"""What the agents' constructors take as keywords, for type checkers and editors.

Written by `python -m rlgkd.scripts.config.docs` from the settings of the agents.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict


class AlgorithmSettings(TypedDict, total=False):
    """Keywords of TextAlgorithm."""

    alpha: float | Callable[[float], float]
    alpha_end: float | None
    alpha_shape: Literal["linear", "cosine", "exponential"]
    student_fraction: float | Callable[[float], float]
    student_fraction_end: float | None
    student_fraction_shape: Literal["linear", "cosine", "exponential"]
    divergence: str
    beta: float | None
    normalized: bool | None
    skew: float | None
    head: float | None
    teacher_top_k: int | None
    estimator: Literal["exact", "sampled", "sampled_centred", "asymmetric", "fixed_negative", "k2", "k3"]
    gap: str
    gap_bound: float | None
    gap_exponent: float | None
    gap_sharpness: float | None
    horizon: float
    policy_loss: str
    clip_low: float | None
    clip_high: float | None
    ratio: Literal["token", "sequence"]
    gate: str
    reweighting: float | None
    reweighting_clip: float | None
    verified_from: float | None
    entropy_decay: float | None
    needs_sibling: bool | None
    margin: float | None
    agree_weight: float | None
    disagree_weight: float | None
    alignment: float | None
    trusted_from: float | None
    sharpness: float | None
    prefix_gain: float | None
    kept_tokens: float | None
    kept_prefix: float | None
    kept_improbable: float | None
    by_entropy: bool | None
    entropy_bonus: float
    reduction: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
    policy_reduction: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"] | None
    divergence_reduction: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"] | None
    advantage: str
    drop_even_groups: bool | Literal["resample"]
    resample_rounds: int
    distil_even_groups: bool
    overlong_buffer: int
    normalise_rewards: bool
    combination: Literal["in_loss", "in_reward"]
    teacher_dtype: Literal["float32", "bfloat16", "float16", "auto"]
    teacher_quantization: Literal["8bit", "4bit"] | None
    teacher_tokens: Literal["same", "spans", "map"]
    teacher_map: str | None
    teacher_device: str | None
    divergence_target: float | None
    alpha_rate: float
    teacher_decay: float | None
    teacher_prompt: str | None
    teacher_column: str
    teacher_mix: Literal["product", "sum"] | None
    teacher_weights: Callable[[float], float] | None
    reference_model: str | None
    extrapolation: float
    sibling_from: float
    teacher_probes: int
    agreement_every: int
    teacher_timeout: float
    teacher_retries: int
    teacher_requests: int
    max_failed_teacher: float
    prompts_per_update: int
    group_size: int
    train_prompts: int | None
    prompts_by: Literal["order", "pass_rate"]
    passed_from: float
    pass_rate_floor: float
    temperature: float
    teacher_temperature: float
    mixture: Literal["batch", "prompt"]
    off_policy: Literal["references", "teacher"]
    off_policy_from: float | None
    teacher_texts: str | None
    behaviour: str | None
    teacher_share: float | None
    kept_top_k: int | None
    rows_at_once: int | None
    replay_size: int
    replay_prompts: int
    replay_terms: Literal["divergence", "both"]
    compile_decoding: bool
    sampler: Sequence[str]
    sampler_weights: Literal["path", "gloo", "nccl"]
    sampler_folder: str | None
    sampler_timeout: float
    sampler_retries: int
    sampler_requests: int
    max_failed_sampler: float
    importance: Literal["none", "truncate", "mask"]
    importance_cap: float
    max_mismatch: float
    staleness: int
    learning_rate: float | Callable[[float], float]
    weight_decay: float
    max_grad_norm: float
    epochs: int
    token_budget: int
    precision: Literal["float32", "bfloat16"]
    gradient_norms_every: int
    dtype: Literal["float32", "bfloat16"]
    saved_dtype: Literal["float32", "bfloat16", "float16"] | None
    student_layers: Sequence[int] | int
    lora_rank: int
    lora_alpha: int | None
    save_adapter: bool
    sharding: Literal["none", "full", "hybrid"]
    gradient_checkpointing: bool


class PPOSettings(AlgorithmSettings, total=False):
    """Keywords of PPO."""

    gae_lambda: float
    value_coefficient: float
    value_clip: float | None
    normalise_advantages: bool
