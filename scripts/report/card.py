"""The model card of a run: README.md in its model's folder, from the run's settings and from what was measured.

It is Markdown with the metadata that the Hugging Face hub reads, and the same for the same run. Each measure has its
95% interval; texts of models are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import rlgkd
from rlgkd import checkpoint
from rlgkd.errors import one_line, shown
from rlgkd.scripts._yaml import dump_yaml
from rlgkd.scripts.report.formatting import compact
from rlgkd.scripts.report.lenient import to_float, to_list, to_mapping
from rlgkd.scripts.report.metrics import DIVERGENCE_LABELS, MeasureRow, measure_rows
from rlgkd.scripts.report.remarks import remarks
from rlgkd.scripts.report.run_files import RunFiles, read_run
from rlgkd.statistics import Interval

CARD: Final = "README.md"
TAGS: Final = ("rlgkd", "reinforcement-learning", "distillation")
USE = """\
```python
from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""


def write_card(run: Path) -> Path:
    """Write the card of a run's folder into its model's folder, and return its path.

    Raises: CheckpointError if it cannot be written.
    """
    path = run / "model" / CARD
    encoder_decoder = '"is_encoder_decoder": true' in _text(run / "model" / "config.json")
    card = shown(model_card(read_run(run), encoder_decoder=encoder_decoder))
    checkpoint.atomic_write(path, card.encode("utf-8", errors="replace"))
    return path


def model_card(files: RunFiles, *, encoder_decoder: bool = False) -> str:
    """Return the card's text."""
    config, summary = files.config, files.summary
    name = str(summary.get("name") or config.get("name") or files.name)
    parts = [
        _metadata(config),
        f"# {_plain(name)}\n",
        _opening(config, summary),
        *_measured(summary),
        *_trained(config, summary),
        "## Use\n",
        USE.format(auto=f"AutoModelFor{'Seq2SeqLM' if encoder_decoder else 'CausalLM'}", folder="path/or/name"),
        _format(to_mapping(config.get("env_settings"))),
        "## Repeat it\n",
        f"With rlgkd {rlgkd.__version__} and these settings as `config.yaml`, from the same data and models:\n",
        "    rlgkd train config.yaml\n",
        _fenced(files.config_text, "yaml"),
    ]
    return "\n".join(part for part in parts if part)


def _metadata(config: Mapping[str, Any]) -> str:
    """The head that the hub reads; models by a path of this machine are not named in it."""
    base = str(config.get("student") or "")
    known = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    values = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if known else {}),
        "tags": list(TAGS),
    }
    return f"---\n{dump_yaml(values)}---\n"


def _opening(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    student, teacher, env, agent = (_plain(_name(config.get(key))) for key in ("student", "teacher", "env", "agent"))
    length = f"{_number(summary.get('tokens'))} tokens in {_number(summary.get('updates'))} updates"
    return (
        f"{student}, trained by rlgkd {rlgkd.__version__} on {env}: {agent}, {length}, "
        f"{f'with {teacher} as the teacher' if teacher else 'without a teacher'}. The objective is Eq. 5 of "
        "[GKD](https://arxiv.org/abs/2306.13649): (1 - alpha) times the reward minus alpha times the divergence to the "
        "teacher.\n"
    )


def _measured(summary: Mapping[str, Any]) -> list[str]:
    rows = measure_rows(summary)
    if not rows:
        return []
    with_teacher = any(math.isfinite(row.teacher.mean) for row in rows)
    heads = ["measure", "before", "this model", *(["teacher"] if with_teacher else []), "change"]
    table = _table(heads, [_measure(row, with_teacher) for row in rows])
    prompts = f"{_number(summary.get('prompts'))} {_plain(summary.get('split', ''))} prompts"
    how = f"On {prompts}, one sampled text each; 95% intervals over prompts, those of the change paired by prompt.\n"
    said = [f"- {_plain(remark)}" for remark in remarks(summary)]
    return ["## What was measured\n", table, how, *(["\n".join(said) + "\n"] if said else [])]


def _measure(row: MeasureRow, with_teacher: bool) -> list[str]:
    def value(score: Interval) -> str:
        bounds = row.metric.bounds(score.low, score.high, between=" to ")
        return row.metric.value(score.mean) + (f" ({bounds})" if bounds else "")

    unit = f", {row.metric.unit}" if row.metric.unit else ""
    bounds = row.metric.bounds(row.change.low, row.change.high, between=" to ")
    change = row.metric.change(row.change.mean) + (f" ({bounds})" if bounds else "")
    scores = [row.before, row.after, *([row.teacher] if with_teacher else [])]
    return [f"{row.metric.label}{unit}", *(value(score) for score in scores), change]


def _trained(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    alpha, end = to_float(summary.get("alpha", config.get("alpha"))), to_float(summary.get("alpha_end"))
    moves = math.isfinite(end) and end != alpha
    divergence = str(summary.get("divergence") or config.get("divergence") or "")
    lora = config.get("lora_rank")
    objective = [
        ("alpha", f"{compact(alpha)}{f' to {compact(end)}' if moves else ''}"),
        ("beta = alpha / (1 - alpha)", _beta(alpha) + (f" to {_beta(end)}" if moves else "")),
        ("divergence", DIVERGENCE_LABELS.get(divergence, divergence.replace("_", " "))),
    ]
    stages = [stage for stage in to_list(summary.get("stages")) if isinstance(stage, Mapping)]
    rows = [
        *([(f"stage {stage.get('name')}", _until(stage)) for stage in stages] if stages else objective),
        ("teacher", _name(config.get("teacher")) or "none"),
        ("learning rate", config.get("learning_rate", "")),
        ("trained", f"LoRA adapters of rank {lora}" if lora else "all weights"),
        ("seed", config.get("seed", "")),
        *((source["setting"], _source(source)) for source in to_list(summary.get("sources")) if _is_source(source)),
    ]
    return ["## How it was trained\n", _table(["", ""], [[key, str(value)] for key, value in rows if str(value)])]


def _until(stage: Mapping[str, Any]) -> str:
    return f"from token {_number(stage.get('tokens'))} to {_number(stage.get('end'))}; its objective is in the settings"


def _beta(alpha: float) -> str:
    if alpha == 1:
        return "no reward"
    return compact(alpha / (1 - alpha)) if math.isfinite(alpha) else ""


def _is_source(source: object) -> bool:
    return isinstance(source, Mapping) and isinstance(source.get("setting"), str) and "name" in source


def _source(source: Mapping[str, Any]) -> str:
    hashed = f", SHA-256 {source['sha256']}" if source.get("sha256") else ""
    return f"{source['name']}{hashed}"


def _format(env_settings: Mapping[str, Any]) -> str:
    """How prompts were written in training, which the model expects."""
    chat, system, stop = (env_settings.get(name) for name in ("chat", "system", "stop"))
    lines = [
        "Prompts were put into the chat template." if chat else "Prompts were plain texts, without a chat template."
    ]
    if template := env_settings.get("prompt"):
        lines.append(f"Each was written by the template {_code(template)}.")
    if system:
        lines.append(f"System message: {_code(system)}.")
    if stop:
        lines.append(
            f"Texts end before {', '.join(_code(repr(one)) for one in ([stop] if isinstance(stop, str) else stop))}."
        )
    return " ".join(lines) + "\n"


def _name(value: object) -> str:
    """A model's name; of a path its last two parts, since the others say only where it was on that machine."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_name(one)}" for name, one in value.items())
    text = str(value or "")
    return "/".join(Path(text).parts[-2:]) if text.startswith(("/", "~")) else text


def _number(value: object) -> str:
    number = to_float(value)
    return f"{number:,.0f}" if math.isfinite(number) else "an unknown number of"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _plain(value: object) -> str:
    """A text that is no Markdown and no HTML, on one line."""
    text = one_line(value)
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text


def _code(value: object) -> str:
    text = one_line(value)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
