"""The command line: `rlgkd COMMAND` and `python scripts/COMMAND.py` are the same.

An error that is the user's to mend is one line on stderr and exit code 2, with where a traceback of the user's own code
was written to; anything else keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from rlgkd.errors import RewardError, RlgkdError, SettingError

app = typer.Typer(
    help="Reinforcement learning for text generation with distillation inside the objective.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TopK = Annotated[int | None, typer.Option(help="Sample from so many of the likeliest tokens alone.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this mass alone.")]
MinP = Annotated[float | None, typer.Option(help="Sample from tokens of this share of the likeliest's probability.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a live one.")]


@app.command()
def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE|FILE.yaml] [key=value ...]", help="See `rlgkd list recipes`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/NAME-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run's folder exactly.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a student on a task reward and a teacher, from a recipe or a file."""
    from rlgkd.scripts.config import run as run_settings
    from rlgkd.scripts.runs import train as training

    if resume is not None:
        if arguments or out is not None:
            raise SettingError("--resume", str(resume), "a run goes on with its own settings; leave the others out")
        page = training.resume(resume, quiet=quiet)
    else:
        settings = run_settings.read(*_named(arguments, "quickstart"))
        folder = out or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}"
        page = training.start(settings, folder, quiet=quiet)
    typer.echo(page)


@app.command()
def compare(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE|FILE.yaml] [key=value ...]", help="See `rlgkd list recipes`.")
    ] = None,
    alphas: Annotated[str, typer.Option(help="Values of alpha; 0,0.25,0.5,1 where nothing is varied.")] = "",
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=a,b,c", help="Values of any setting; repeat for combinations.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many, or which with commas between them.")] = "3",
    samples: Annotated[int, typer.Option(min=1, help="Texts for each prompt of the evaluation.")] = 4,
    baseline: Annotated[str, typer.Option(help="Cell to measure against; by default the first and the last.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to begin or go on with; runs/compare-NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs side by side; by default one for each core.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Compare runs over the values of some settings and seeds: how much teacher, and does it help?"""
    from rlgkd.scripts.comparison import compare as comparing
    from rlgkd.scripts.comparison.grid import grid, seeds_of, values_of
    from rlgkd.scripts.config import run as run_settings

    varied = [*([f"alpha={alphas or '0,0.25,0.5,1'}"] if alphas or not vary else []), *(vary or [])]
    base = run_settings.read(*_named(arguments, "compare"))
    if twice := [key for key, _ in map(values_of, varied) if sum(v.startswith(f"{key}=") for v in varied) > 1]:
        raise SettingError("vary", twice[0], "name each setting once, with all its values")
    cells = grid(base, dict(map(values_of, varied)), seeds_of(seeds), samples=samples, baseline=baseline)
    page, failed = comparing.compare(cells, out or Path("runs") / f"compare-{base.name}", jobs=jobs, quiet=quiet)
    typer.echo(page)
    if failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model's name or path, or the folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[env_settings.NAME=value ...]", help="Settings of the environment, over the run's."),
    ] = None,
    env: Annotated[
        str, typer.Option(help="Registered id of the environment; a run's own, else rlgkd/GroundedSummary-v0.")
    ] = "",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 256,
    teacher: Annotated[str, typer.Option(help="To measure the divergence to.")] = "",
    temperature: Annotated[float | None, typer.Option(help="Of the model; a run's own, else 1.")] = None,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
) -> None:
    """Measure a model on held-out prompts: reward, quality, divergence, each with its 95% interval."""
    from rlgkd.scripts.runs import evaluate as evaluation

    evaluation.show(
        model, overrides or [], env=env, split=split, prompts=prompts, teacher=teacher, temperature=temperature,
        greedy=greedy, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p,
    )  # fmt: skip


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A model's name or path, or the folder of a run.")],
    prompts: Annotated[list[str], typer.Argument(help="Texts to complete.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="Of the samples; ignored with --greedy.")] = 1.0,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest token.")] = False,
    chat: Annotated[bool, typer.Option(help="Put the prompt into the chat template.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this string; repeat for others. A new line is $'\\n'.")
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
) -> None:
    """Complete prompts with a model."""
    from rlgkd.ops.logit_filters import Filters
    from rlgkd.scripts.runs import generate as generation

    for text in generation.complete(
        model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, greedy=greedy, chat=chat, seed=seed,
        stop=stop or (), filters=Filters(top_k=top_k, top_p=top_p, min_p=min_p),
    ):  # fmt: skip
        typer.echo(text)


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="[KIND]", help="Such as settings, envs or recipes; all kinds by default.")
    ] = "",
) -> None:
    """List what there is to name."""
    from rlgkd.scripts import listing

    listing.show(what)


@app.command()
def benchmark(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORKLOAD] [key=value ...]", help="See docs/performance.md; all by default."),
    ] = None,
    peer: Annotated[str, typer.Option(help="trl: the same work by it, in turns; pip install 'rlgkd[trl]'.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each, in turns.")] = 3,
) -> None:
    """Measure speed; one line of JSON for each workload."""
    from rlgkd.scripts.benchmarks import command as benchmarks

    benchmarks.show(*_named(arguments, ""), peer=peer, pairs=pairs)


def _named(arguments: Sequence[str] | None, default: str) -> tuple[str, Sequence[str]]:
    """The name that may stand before `key=value` arguments, and these."""
    given = arguments or []
    return (given[0], given[1:]) if given and "=" not in given[0] else (default, given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that are the user's to mend are one line and exit code 2."""
    # transformers draws a bar for every file it opens, over the command's own line.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="rlgkd")
    except RlgkdError as error:
        print(f"rlgkd: {error}{_traceback(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rlgkd: stopped", file=sys.stderr)
        sys.exit(130)


def _traceback(error: RlgkdError) -> str:
    """Where the traceback of a reward's failure was written to; empty for other errors."""
    if not isinstance(error, RewardError) or error.__cause__ is None:
        return ""
    with tempfile.NamedTemporaryFile("w", prefix="rlgkd-reward-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error.__cause__, file=file)
    return f"; its traceback: {file.name}"


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """`main` for a script that is one command."""
    main([command, *(sys.argv[1:] if arguments is None else arguments)])
