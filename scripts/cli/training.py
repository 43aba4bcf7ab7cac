"""The commands that train: train, compare, teach."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlgkd.errors import SettingError, shown
from rlgkd.scripts._errors import check_one_process
from rlgkd.scripts.cli.arguments import Quiet, RecipeArguments, split_names

if TYPE_CHECKING:
    from rlgkd.scripts.config.run import RunConfig

DEFAULT_ALPHAS = "0,0.25,0.5,1"


def train(
    arguments: RecipeArguments = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/NAME-TIME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run's folder exactly, or with changed settings: tokens=...")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do and take, by a short trial; writes nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a student on a task reward and a teacher, from a recipe or a file."""
    from rlgkd import ranks
    from rlgkd.scripts.config.paths import folder_name
    from rlgkd.scripts.runs import train as training

    if dry_run:
        check_one_process("rlgkd train --dry-run")
        if resume is not None:
            raise SettingError("--dry-run", str(resume), "it is for a run that begins; leave --resume out")
        from rlgkd.scripts.runs import dry_run as trial

        for line in trial.dry_run(_read(arguments, "quickstart")):
            typer.echo(shown(line))
        return
    if resume is not None:
        if out is not None:
            raise SettingError("--out", str(out), "a run goes on in its own folder; leave it out")
        report = training.resume(resume, arguments or (), quiet=quiet)
    else:
        settings = training.agreed_settings(lambda: _read(arguments, "quickstart"))
        folder = out or Path("runs") / f"{folder_name(settings.name)}-{datetime.now():%Y%m%d-%H%M%S}"
        report = training.start(settings, folder, quiet=quiet)
    if report is not None:
        typer.echo(report)
    ranks.leave()


def compare(
    arguments: RecipeArguments = None,
    alphas: Annotated[str, typer.Option(help=f"Values of alpha; {DEFAULT_ALPHAS} where nothing is varied.")] = "",
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=a,b,c", help="Values of any setting; repeat for combinations.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many, or which with commas between them.")] = "3",
    samples: Annotated[int, typer.Option(min=1, help="Completions for each prompt of the evaluation.")] = 4,
    baseline: Annotated[str, typer.Option(help="Cell to measure against; by default the first and the last.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to begin or to continue; runs/compare-NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs at the same time; by default one for each core.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Compare runs over the values of some settings and seeds: how much teacher, and does it help?"""
    from rlgkd.scripts.comparison import compare as comparison
    from rlgkd.scripts.comparison.grid import grid, parse_seeds, parse_variation
    from rlgkd.scripts.config.paths import folder_name

    variations = list(vary or [])
    if alphas or not variations:
        variations.insert(0, f"alpha={alphas or DEFAULT_ALPHAS}")
    base = _read(arguments, "compare")
    varied: dict[str, list[object]] = {}
    for variation in variations:
        key, values = parse_variation(variation)
        if key in varied:
            raise SettingError("vary", key, "name each setting once, with all its values")
        varied[key] = values
    cells = grid(base, varied, parse_seeds(seeds), samples=samples, baseline=baseline)
    folder = out or Path("runs") / f"compare-{folder_name(base.name)}"
    report, failed = comparison.compare(cells, folder, jobs=jobs, quiet=quiet)
    typer.echo(report)
    if failed:
        raise typer.Exit(1)


def teach(
    data: Annotated[str, typer.Argument(help="The recipe or YAML file of a run, or a data file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings of the run over it.")
    ] = None,
    teacher: Annotated[str, typer.Option(help="A model, or a server's address; by default the run's.")] = "",
    top_k: Annotated[int, typer.Option(min=1, help="Tokens whose log-probabilities are kept.")] = 64,
    out: Annotated[Path, typer.Option(help="The file, which a run then takes as its teacher.")] = Path(
        "teacher.safetensors"
    ),
    texts: Annotated[
        Literal["references", "teacher"], typer.Option(help="references, or teacher: texts that it writes now.")
    ] = "references",
    split: Annotated[str, typer.Option(help="Whose prompts.")] = "train",
    prompts: Annotated[int | None, typer.Option(min=1, help="How many, in the order of the run.")] = None,
) -> None:
    """Write a teacher's log-probabilities of texts into a file, to teach a student by it without the teacher."""
    from rlgkd.scripts.runs import teach as teaching

    teaching.teach(
        data,
        overrides or (),
        teacher=teacher,
        top_k=top_k,
        out=out,
        texts=texts,
        split=split,
        prompts=prompts,
    )


def _read(arguments: Sequence[str] | None, default: str) -> RunConfig:
    """The settings of a run; says what a file replaces of the recipe before it, and what is chosen."""
    from rlgkd.scripts.config import reading
    from rlgkd.scripts.config.choices import chooser

    recipe, source, overrides = split_names(arguments, default)
    if replaced := reading.replaced(recipe, source) if recipe else "":
        _say(replaced)
    return reading.read(source, overrides, recipe=recipe, choose=chooser(_say))


def _say(line: str) -> None:
    """Show what is chosen; of several processes the first one does."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(shown(line), err=True)
