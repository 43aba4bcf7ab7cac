"""The settings of a sampler that is elsewhere, and what they do not go with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BeforeValidator

from rlgkd.errors import SettingError
from rlgkd.objective import Fraction
from rlgkd.settings import Settings
from rlgkd.teachers.names import is_address


def _addresses(value: Any) -> Any:
    """One address, or several, separated by commas or as a list."""
    given = value.split(",") if isinstance(value, str) else value
    if not given:
        return ()
    addresses = [one.strip() for one in given if isinstance(one, str)] if isinstance(given, list | tuple) else []
    if not addresses or len(addresses) != len(given) or not all(map(is_address, addresses)):
        remedy = "give the address of a vLLM server such as http://localhost:8000, or several"
        raise SettingError("sampler", value, remedy)
    return tuple(addresses)


PathText = Annotated[str, MinLen(1), BeforeValidator(lambda path: str(path) if isinstance(path, Path) else path)]


class SamplerSettings(Settings):
    """Servers that sample the student's texts, how they get its weights, and how what they sample is corrected."""

    sampler: Annotated[tuple[str, ...], BeforeValidator(_addresses)] = ()
    """Addresses of vLLM servers that sample the student's texts (docs/scale.md); none: it samples in this process."""
    sampler_weights: Literal["path", "gloo", "nccl"] = "path"
    """How the servers get the weights: by a file, or by a process group of rlgkd's plugin for vLLM."""
    sampler_folder: PathText | None = None
    """Folder of that file, under a name that the servers see too; null is a temporary one of this machine."""
    sampler_timeout: Annotated[float, Gt(0)] = 600.0
    """Seconds for a server's answer for one prompt's texts, in each try, and for taking weights."""
    sampler_retries: Annotated[int, Ge(0)] = 3
    """Further tries if a server does not answer: after 1 s, then 2 s, 4 s, and so on."""
    sampler_requests: Annotated[int, Ge(1)] = 64
    """Prompts that each server is asked for at once."""
    max_failed_sampler: Fraction = 0.1
    """Share of the texts for which servers may fail before the run stops; each prompt of them is left out."""
    importance: Literal["none", "truncate", "mask"] = "truncate"
    """What weighs a served token in the gradient: its ratio to the student up to a cap, 0 beyond one, or always 1."""
    importance_cap: Annotated[float, Ge(1)] = 2.0
    """The largest of these weights; mask also leaves out ratios below its inverse."""
    max_mismatch: Annotated[float, Gt(0)] = 0.2
    """Nats a token, in the mean, by which servers' log-probabilities may differ from the student's; above it ends."""
    staleness: Annotated[int, Ge(0), Le(1)] = 0
    """Updates by which the weights of a text may be old: with 1, servers sample the next texts while one trains."""

    def check(
        self,
        *,
        fractions: tuple[float, float],
        mixed: bool,
        needs_ratios: bool,
        policy_loss: str,
    ) -> None:
        """Refuse what a sampler elsewhere does not go with, or what would be ignored without one.

        Args:
            fractions: The least and the greatest `student_fraction`.
            mixed: Whether student and teacher sample together.
            needs_ratios: Whether a term weighs what was sampled.
            policy_loss: Its name.

        Raises: SettingError.
        """
        served, stale = bool(self.sampler), self.staleness > 0
        defaults = SamplerSettings()
        for name, wrong, remedy in (
            ("sampler", served and mixed,
             "with behaviour, student and teacher sample together in this process; leave one of them out"),
            ("sampler", served and fractions[1] == 0, "the student generates nothing; leave it out"),
            ("sampler_folder", self.sampler_folder is not None and self.sampler_weights != "path",
             "weights go through no file; leave it out, or set sampler_weights to path"),
            ("importance_cap", self.importance_cap != defaults.importance_cap and self.importance == "none",
             "there are no weights to cap; set importance to truncate or mask"),
            ("staleness", stale and not served,
             "in this process sampling and training take turns anyway; set it to 0, or give a sampler"),
            ("staleness", stale and needs_ratios and policy_loss == "reinforce",
             "the texts are another policy's; set policy_loss to clipped or clipped_weight, or staleness to 0"),
            ("staleness", stale and fractions[0] < 1,
             "whether the next texts are the student's must be known; set student_fraction to 1, or staleness to 0"),
            *((name, not served and getattr(self, name) != getattr(defaults, name), "set sampler too")
              for name in SamplerSettings.model_fields if name not in ("sampler", "staleness")),
        ):  # fmt: skip
            if wrong:
                raise SettingError(name, getattr(self, name), remedy)
