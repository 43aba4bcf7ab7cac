"""Do two checkouts do the same, to the bit? For a change that must change nothing, such as a move of modules.

    python tests/same_as_before.py OLD NEW [--only NAME ...] [--json FILE]
    python tests/same_as_before.py --record CHECKOUT FILE [--only NAME ...]

OLD and NEW are checkouts; OLD may be a FILE that --record wrote, so that the old side is run once. What is compared, by
its name (--only takes how names begin, such as `settings` or `small/ppo`):

    settings/RECIPE    what `rlgkd train RECIPE` resolves to, for every recipe
    small/RUN          some updates of each recipe that needs no download, and of settings that no recipe has
    killed/RUN         the same, killed behind its second checkpoint and resumed, and how it then differs from one never
                       stopped
    whole/quickstart   the quickstart as the README has it, then evaluated and asked for texts
    compare/RUN        a small comparison

Of a run that is its folder: settings, curves, every sampled text, summary, report, weights, optimizer. Left out are
seconds and what holds them (times.csv, TensorBoard's events, a checkpoint's manifest), and the state of the global
generators, which nobody seeds because nothing is drawn from them. Nothing but the command line is called, so a checkout
may name its modules as it likes.

Prints a line for each name: `same`, or file, field and both values of the first difference. Exits with 1 where there is
one. A setting that OLD lacks is told and is no difference; a recipe that OLD lacks is not looked at.

Each run is a process of one thread, forked from this one, which has imported the libraries and nothing of rlgkd. Bits
are those of one machine and its libraries: record and compare on the same. Some 5 minutes for each side.
"""

from __future__ import annotations

import argparse
import csv
import glob
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from markupsafe import escape

T5 = Path(__file__).resolve().parent / "old_runs" / "agents" / "t5"
SMALL = ("tokens=300", "prompts_per_update=2", "eval_prompts=2", "eval_split=validation", "warmup=0", "threads=1")
"""As tests/scripts/test_recipes.py trains them, for some six updates."""
MORE = (
    "grpo lora_rank=4",
    "grpo precision=bfloat16",
    "quickstart student_layers=[0] gradient_checkpointing=true rows_at_once=3",
    "quickstart divergence_target=0.3 temperature=0.9 teacher_temperature=0.8 teacher_top_k=5",
    "gkd agent=Reinforce alpha=0.5 alpha_end=0.1 alpha_shape=cosine group_size=2",
    "ppo teacher_decay=0.9 value_clip=null estimator=exact combination=in_loss student_fraction=0.5 mixture=prompt",
    "reinforce normalise_rewards=true overlong_buffer=8 entropy_bonus=0.01 drop_even_groups=true",
    "reinforce env=rlgkd/Guess-v0 student=embedded:grounded-student teacher=embedded:grounded-teacher alpha=0.5",
    "translate student=T5 teacher=T5/teacher alpha=0.5",
)
KILLED = ("quickstart", "grpo", "ppo", "ppo teacher_decay=0.9", "quickstart divergence_target=0.3")
PROMPT = " Hugo Norberg auctioned a school with 382 classrooms in Calvale on 9 February. Tourists saw it.\nSummary:"
ASKED = (
    ("evaluate", "--prompts", "20", "--teacher", "embedded:grounded-teacher"),
    ("generate", "--greedy"),
    ("generate", "--seed", "3", "--top-k", "9", "--top-p", "0.9", "--temperature", "1.2"),
)
LEFT_OUT = re.compile(r"times\.csv|timing\.json|manifest\.json|random\.json|\.lock|events\.out\..*|log\.txt")
OF_TIME = ("seconds", "speed", "times.csv")
"""Fields that tell of times, in files that are compared."""
LARGE = 200_000
"""Bytes above which a file is compared by its hash alone."""
LIBRARIES = (
    "accelerate",
    "matplotlib.pyplot",
    "peft",
    "pydantic",
    "rich.table",
    "rouge_score.rouge_scorer",
    "sacrebleu",
    "scipy.stats",
    "stable_baselines3",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "typer",
)
"""What takes its time to import; where one is absent, the runs say so if they need it."""
ABSENT = "(nothing)"


class RunError(Exception):
    """A command of a checkout did not end as it should."""


def main() -> int:
    """Record or compare, as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs=2, type=Path, metavar="PATH", help="OLD and NEW; or CHECKOUT and FILE")
    parser.add_argument("--record", action="store_true", help="run CHECKOUT and write what it does to FILE")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="how the names begin")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all differences there")
    given = parser.parse_args()
    for checkout in given.sides[:1] if given.record else given.sides:
        if not (checkout / "rlgkd").is_dir() and not (checkout == given.sides[0] and checkout.is_file()):
            parser.error(f"{checkout} is no checkout")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "100"}
    for library in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(library)
    told, bad = {}, 0
    for name, found, line, good in (record if given.record else compared)(*given.sides, only=tuple(given.only)):
        print(f"{' ' if good else '!'} {name}: {line}", flush=True)
        told[name], bad = found, bad + (not good)
    if file := given.sides[1] if given.record else given.json:
        file.write_text(json.dumps(told) + "\n")
    print(f"{len(told)} looked at, {bad} {'failed' if given.record else 'differ'}")
    return int(bad > 0 or not told)


Told = Iterator[tuple[str, Any, str, bool]]
"""Name, what goes into a file, what goes onto the screen, and whether all is well."""


def record(checkout: Path, _: Path, *, only: tuple[str, ...]) -> Told:
    """What the checkout does."""
    for name in names(checkout):
        if name.startswith(only):
            began = time.perf_counter()
            found = outcome(checkout, name)
            line = found.get("failed", f"recorded in {time.perf_counter() - began:.0f} s")
            yield name, found, line, "failed" not in found


def compared(old: Path, new: Path, *, only: tuple[str, ...]) -> Told:
    """The differences between what the two do."""
    before = json.loads(old.read_text()) if old.is_file() else None
    for name in before or names(old):
        if not name.startswith(only):
            continue
        was, is_ = _renamed(before[name] if before else outcome(old, name)), outcome(new, name)
        found = [*differences(was, is_), *([("failed", was["failed"], "as well")] if "failed" in was else [])]
        found.sort(key=lambda difference: difference[0] != "failed")  # it tells most
        # A setting that one side leaves open or out (null, or another variant's parameter) is not compared, and then
        # neither is a report, which shows the settings as they are written.
        unset = {where for where, *pair in found if SETTING.search(where) and {ABSENT, None} & {*map(_plain, pair)}}
        ignored = {*unset, *(where for where, *_ in found if unset and where.endswith("report.html/sha256"))}
        found = [difference for difference in found if difference[0] not in ignored]
        names_of_unset = dict.fromkeys(where.rpartition("/")[2] for where in sorted(unset))
        line = f"same, with settings of one side alone: {', '.join(names_of_unset)}" if unset else "same"
        if found:
            line = "{}: {} -> {}".format(*(str(part)[-200:] for part in found[0]))
            line += f", and {len(found) - 1} more" if found[1:] else ""
        yield name, found, line, not found


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else "a value"


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where the two differ, and both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), "/".join(filter(None, (where, key))))
    elif isinstance(old, list) and isinstance(new, list):
        for number, (was, is_) in enumerate(zip_longest(old, new, fillvalue=ABSENT)):
            yield from differences(was, is_, f"{where}/{number}")
    elif repr(old) != repr(new):
        yield where, old, new


def names(checkout: Path) -> list[str]:
    """All that is looked at in a checkout."""
    recipes = sorted(recipe_files(checkout))
    embedded = [recipe for recipe in recipes if "smollm2" not in recipe]
    runs = {"settings": recipes, "small": [*embedded, *MORE], "killed": KILLED}
    return [f"{kind}/{run}" for kind in runs for run in runs[kind]] + ["whole/quickstart", "compare/quickstart"]


def recipe_files(checkout: Path) -> dict[str, Path]:
    """Name -> file, wherever in the package the recipes lie."""
    found = glob.glob("rlgkd/**/recipes/*.yaml", root_dir=checkout, recursive=True)
    return {Path(file).stem: checkout / file for file in found}


def outcome(checkout: Path, name: str) -> dict[str, Any]:
    """What a checkout makes of a name, as it comes back from a file of JSON."""
    kind, _, run = name.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = KINDS[kind](checkout.resolve(), Path(folder) / "run", *run.replace("T5", str(T5)).split())
        except RunError as error:
            found = {"failed": str(error)}
    return dict(json.loads(json.dumps(found).replace(str(T5), "T5")))


def settings(checkout: Path, out: Path, recipe: str) -> dict[str, Any]:
    """The run is killed as soon as it has said what it is."""
    config = out / "config.yaml"
    rlgkd(checkout, "train", recipe, "--out", str(out), until=config.exists)
    return {config.name: yaml.safe_load(config.read_text())}


def small(checkout: Path, out: Path, *run: str) -> dict[str, Any]:
    """The folder of a run of a few updates."""
    rlgkd(checkout, *train(checkout, out, *run))
    return contents(out)


def killed(checkout: Path, out: Path, *run: str) -> dict[str, Any]:
    """The folder of a run that was killed and resumed, and how it differs from one that was not."""
    run, never = (*run, "tokens=600", "checkpoint_every=1"), out.with_name("never")
    rlgkd(checkout, *train(checkout, never, *run))
    rlgkd(checkout, *train(checkout, out, *run), until=lambda: any(out.glob("checkpoints/step-[2-9]")))
    if (out / "summary.json").exists():
        raise RunError("it came to its end before it was killed")
    rlgkd(checkout, "train", "--resume", str(out), "--quiet")
    resumed = contents(out)
    return {**resumed, "unlike one never stopped": list(differences(contents(never), resumed))}


def whole(checkout: Path, out: Path, recipe: str) -> dict[str, Any]:
    """The folder of a whole recipe, and what its model says when asked."""
    rlgkd(checkout, "train", recipe, "--out", str(out), "--quiet", "threads=1")
    said = {}
    for command, *options in ASKED:
        what = [PROMPT] if command == "generate" else []
        said[" ".join([command, *options])] = rlgkd(checkout, command, str(out), *what, *options).replace(
            str(out), "OUT"
        )
    return {**contents(out), "said": {command: BARS.sub("", text) for command, text in said.items()}}


def compare(checkout: Path, out: Path, recipe: str) -> dict[str, Any]:
    """The folder of a comparison of two cells and one seed."""
    asked = ("--alphas", "0,0.9", "--seeds", "1", "--samples", "2", "--jobs", "1", "--quiet")
    rlgkd(checkout, "compare", recipe, "--out", str(out), *asked, *SMALL, "group_size=2")
    return contents(out)


KINDS: dict[str, Callable[..., dict[str, Any]]] = {f.__name__: f for f in (settings, small, killed, whole, compare)}


def train(checkout: Path, out: Path, recipe: str, *changes: str) -> list[str]:
    """The arguments of a small run, with groups of two at most."""
    if (file := recipe_files(checkout).get(recipe)) is None:
        raise RunError(f"it has no recipe {recipe}")
    group = yaml.safe_load(file.read_text()).get("group_size", 4)
    return ["train", recipe, "--out", str(out), "--quiet", *SMALL, f"group_size={min(2, group)}", *changes]


def rlgkd(checkout: Path, *arguments: str, until: Callable[[], bool] | None = None) -> str:
    """Run a command of a checkout to its end, or kill it as soon as `until` holds; returns what it printed."""
    with tempfile.NamedTemporaryFile("r") as log:
        process = multiprocessing.get_context("fork").Process(target=entered, args=(checkout, log.name, arguments))
        process.start()
        while until and process.is_alive() and not until():
            time.sleep(0.002)
        if until:
            process.kill()
        process.join()
        printed = log.read()
    if process.exitcode != (-signal.SIGKILL if until else 0):
        raise RunError(f"rlgkd {' '.join(arguments)}: {' '.join(printed.split())[-200:] or process.exitcode}")
    return printed


def entered(checkout: Path, log: str, arguments: Sequence[str]) -> None:
    """The process of a command: `python -m rlgkd.scripts ARGUMENTS` with the checkout on the path."""
    with open(log, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ["PYTHONPATH"] = str(checkout)
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    sys.argv = ["rlgkd", *arguments]
    where = importlib.import_module("rlgkd").__file__ or ""
    if not Path(where).is_relative_to(checkout):
        raise RunError(f"rlgkd was imported from {where}")
    runpy.run_module("rlgkd.scripts", run_name="__main__", alter_sys=True)


def contents(folder: Path) -> dict[str, Any]:
    """File -> its fields, or the hash of its bytes, or both where bytes are told; what tells most is first."""
    files = [path for path in folder.rglob("*") if path.is_file() and not LEFT_OUT.fullmatch(path.name)]
    config = folder / "config.yaml"
    shown = str(escape(config.read_text())) if config.exists() else ""
    found: dict[str, Any] = {}
    for path in sorted(files, key=lambda path: (len(path.parts), path.suffix == ".html", path)):
        raw = path.read_bytes().replace(str(folder).encode(), b"OUT")
        if path.suffix == ".html":  # a report shows its time, and the settings, of which there may be new ones
            if path.with_name("timing.json").exists():
                continue  # a comparison's: its curves over time are everywhere in it
            raw = re.sub(rb"<dt>Time</dt><dd>.*?</dd>", b"", raw.replace(shown.encode(), b""))
        told = path.suffix in READ and len(raw) < LARGE
        entry = found[str(path.relative_to(folder))] = {"": READ[path.suffix](raw.decode())} if told else {}
        if not told or path.suffix in (".csv", ".jsonl"):
            entry["sha256"] = hashlib.sha256(raw).hexdigest()
    return found


def _renamed(value: Any) -> Any:
    """What OLD did, with the names of today, and without an alpha that is not steered."""
    if isinstance(value, list):
        return [_renamed(part) for part in value]
    if isinstance(value, str):
        return BARS.sub("", value)
    if not isinstance(value, dict):
        return value
    return {RENAMED.get(name, name): _renamed(part) for name, part in value.items()}


def _without_times(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = ((name, value) for name, value in pairs if name not in OF_TIME and (name, value) != ("alpha", None))
    return {RENAMED.get(name, name): value for name, value in kept}


def fields(text: str) -> Any:
    """JSON without what tells of times; its numbers as they are written."""
    return json.loads(
        text,
        parse_float=str,
        parse_constant=str,
        object_pairs_hook=_without_times,
    )


BARS = re.compile(r"Loading weights:[^\n]*\n?")
"""What transformers writes while it opens a file, with its speed."""
RENAMED = {"counters": "state", "training": "state", "cursor": "next_prompt", "rewards_seen": "rewards"}
"""Names in a run's files that have changed, old -> new."""
SETTING = re.compile(r"config\.yaml/|/settings/")
READ: dict[str, Callable[[str], Any]] = {
    ".json": fields,
    ".jsonl": lambda text: [fields(line) for line in text.splitlines()],
    ".csv": lambda text: list(csv.DictReader(text.splitlines())),
    ".yaml": yaml.safe_load,
}

if __name__ == "__main__":
    sys.exit(main())
