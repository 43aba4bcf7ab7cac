"""The command line: `rlgkd COMMAND`; `python scripts/COMMAND.py` does the same from a checkout.

Each command imports what it runs when it runs, so that `rlgkd --help` imports neither torch nor transformers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rlgkd import __version__
from rlgkd.errors import SettingError, shown
from rlgkd.scripts._console import ShownFormatter
from rlgkd.scripts._errors import check_one_process, one_line_errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts hold brackets, as in rlgkd[trl], which markup would take out
)

DEFAULT_ALPHAS = "0,0.25,0.5,1"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlgkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reinforcement learning for text generation with distillation inside the objective."""


RecipeArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [FILE.yaml] [key=value ...]", help="Each over the one before; see `rlgkd list recipes`."
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many of the likeliest tokens alone.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this mass alone.")]
MinP = Annotated[float | None, typer.Option(help="Sample from tokens of this share of the likeliest's probability.")]
SamplingSeed = Annotated[int, typer.Option(min=0, help="Seed of the samples.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a live one.")]


@app.command()
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
    from rlgkd.scripts.config import run as run_config
    from rlgkd.scripts.config.paths import folder_name
    from rlgkd.scripts.runs import train as training

    if dry_run:
        check_one_process("rlgkd train --dry-run")
        if resume is not None:
            raise SettingError("--dry-run", str(resume), "it is for a run that begins; leave --resume out")
        from rlgkd.scripts.runs import dry_run as trial

        recipe, source, overrides = _split_names(arguments, "quickstart")
        for line in trial.dry_run(run_config.read(source, overrides, recipe=recipe)):
            typer.echo(shown(line))
        return
    if resume is not None:
        if out is not None:
            raise SettingError("--out", str(out), "a run goes on in its own folder; leave it out")
        report = training.resume(resume, arguments or (), quiet=quiet)
    else:
        recipe, source, overrides = _split_names(arguments, "quickstart")
        settings = training.agreed_settings(lambda: run_config.read(source, overrides, recipe=recipe))
        folder = out or Path("runs") / f"{folder_name(settings.name)}-{datetime.now():%Y%m%d-%H%M%S}"
        report = training.start(settings, folder, quiet=quiet)
    if report is not None:
        typer.echo(report)
    ranks.leave()


@app.command()
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
    from rlgkd.scripts.config import run as run_config
    from rlgkd.scripts.config.paths import folder_name

    variations = list(vary or [])
    if alphas or not variations:
        variations.insert(0, f"alpha={alphas or DEFAULT_ALPHAS}")
    recipe, source, overrides = _split_names(arguments, "compare")
    base = run_config.read(source, overrides, recipe=recipe)
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


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model's name or path, or the folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.yaml] [env_settings.NAME=value ...]",
            help="Whose environment, if not the run's own; settings of the environment over its.",
        ),
    ] = None,
    env: Annotated[
        str, typer.Option(help="Registered id of the environment; the run's own, else rlgkd/GroundedSummary-v0.")
    ] = "",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 256,
    teacher: Annotated[str, typer.Option(help="Model that the divergence is measured to.")] = "",
    temperature: Annotated[float | None, typer.Option(help="The model's temperature; the run's own, else 1.")] = None,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest token.")] = False,
    seed: SamplingSeed = 0,
    samples: Annotated[int, typer.Option(min=1, help="Texts of each prompt; with several, pass@k too.")] = 1,
    out: Annotated[Path | None, typer.Option(help="File for the scores and texts, as JSON.")] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    lm_eval: Annotated[
        str,
        typer.Option(
            metavar="TASKS", help="Instead: these tasks of lm-eval, with commas; a run's start and teacher too."
        ),
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task of lm-eval, at most.")] = None,
) -> None:
    """Measure a model on held-out prompts: reward, quality, divergence, each with its 95% interval."""
    if lm_eval:
        if overrides:
            raise SettingError("argument", overrides[0], "it is of an environment; leave it out with --lm-eval")
        from rich.console import Console

        from rlgkd.scripts.runs import lm_eval_tasks

        tasks = [task.strip() for task in lm_eval.split(",") if task.strip()]
        Console().print(lm_eval_tasks.table(lm_eval_tasks.compared(model, tasks, limit=limit)))
        return
    from rlgkd.scripts.runs import evaluate as evaluation

    file, over = _split_file(overrides or [])
    evaluation.show(
        model,
        over,
        file=file,
        env=env,
        split=split,
        prompts=prompts,
        teacher=teacher,
        temperature=temperature,
        greedy=greedy,
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        samples=samples,
        out=out,
    )


@app.command()
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


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A model's name or path, or the folder of a run.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT ...]", help="Texts to complete; none to talk, with --chat.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The run's own, else 64.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the samples, the run's own, else 1; ignored with --greedy.")
    ] = None,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest token.")] = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Put prompts into the chat template. Without a prompt: talk, line by line."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system's message, in a chat.")] = None,
    chat_template_kwargs: Annotated[
        str, typer.Option(help="Variables of the chat template, such as '{enable_thinking: false}', over a run's.")
    ] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Not in the format of the run's training: prompts as they are given.")
    ] = False,
    seed: SamplingSeed = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this string; repeat for others. A new line is $'\\n'.")
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
) -> None:
    """Complete prompts with a model; a run's in the format of its training: template, chat, system, stop strings."""
    from rlgkd.ops.logit_filters import Filters
    from rlgkd.scripts.runs import generate as generation

    def show(completion: str) -> None:
        # A file gets the text as it is; a terminal would obey what a model generated.
        typer.echo(shown(completion) if sys.stdout.isatty() else completion)

    def read_line() -> str | None:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None

    settings: dict[str, Any] = {
        "seed": seed,
        "greedy": greedy,
        "filters": Filters(top_k=top_k, top_p=top_p, min_p=min_p),
        "say": lambda line: typer.echo(shown(line), err=True),
        "system": system,
        "stop": stop or None,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "chat_template_kwargs": generation.parse_variables(chat_template_kwargs),
        "raw": raw,
    }
    if prompts:
        for completion in generation.complete(model, prompts, chat=chat, **settings):
            show(completion)
    elif chat:
        generation.talk(model, read_line, show, **settings)
    else:
        raise SettingError("prompts", "", "give texts to complete, or --chat to talk with the model")


@app.command()
def cut(
    model: Annotated[str, typer.Argument(help="A model's name or path, or the folder of a run.")],
    layers: Annotated[int, typer.Option(min=1, help="How many layers to keep.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=value ...]", help="Settings of the environment.")
    ] = None,
    on: Annotated[str, typer.Option(help="Registered id of the environment whose prompts it writes to.")] = (
        "rlgkd/GroundedSummary-v0"
    ),
    out: Annotated[Path, typer.Option(help="New folder for the cut model.")] = Path("cut"),
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the training split, a text to each.")] = 12,
) -> None:
    """Cut layers out of a model: the block of layers whose loss changes its texts' distributions least."""
    from rlgkd.scripts.runs import cut as cutting

    cutting.cut(model, layers, on, overrides or [], out, prompts=prompts)


@app.command()
def align(
    student: Annotated[str, typer.Argument(help="The student's name or path.")],
    teacher: Annotated[str, typer.Argument(help="The teacher's, which has another tokenizer.")],
    out: Annotated[Path, typer.Option(help="File for the map, which teacher_map names.")] = Path("map.safetensors"),
) -> None:
    """Write the map from a teacher's tokens to a student's with another tokenizer."""
    from rlgkd.scripts.runs import align as aligning

    aligning.align(student, teacher, out)


@app.command()
def check(
    environment: Annotated[str, typer.Argument(metavar="ENV|FILE.yaml|RECIPE", help="What to check.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each split.")] = 64,
) -> None:
    """Prove an environment: limits, splits, reward on right and wrong answers, checkers. Exit code 1 if one fails."""
    from rlgkd.scripts import env_check
    from rlgkd.scripts.config import run as run_config

    is_settings = environment.endswith((".yaml", ".yml")) or environment in run_config.recipe_names()
    given = overrides or ()
    settings = (
        run_config.read(environment, given)
        if is_settings
        else run_config.check(run_config.override({"env": environment}, given))
    )
    failed = 0
    for outcome in env_check.check_environment(settings, prompts):
        failed += outcome.mark == "FAIL"
        typer.echo(shown(str(outcome)))
    if failed:
        raise typer.Exit(1)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where; made if it is not there.")] = Path(),
) -> None:
    """Write a project of your own that runs: settings, reward, data, README."""
    from rlgkd.scripts.project import write_project

    for path in write_project(folder):
        typer.echo(path)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Folder of a run that has ended.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/name of the hub; or a folder, such as ./hub/name.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; private by default.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "",
) -> None:
    """Send a run's model, card and report to the Hugging Face hub, or to a folder."""
    from rlgkd.scripts.runs import push as pushing

    typer.echo(pushing.push(run, repository, public=public, message=message))


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="[KIND]", help="Such as settings, envs or recipes; the kinds by default.")
    ] = "",
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD ...]", help="That what is listed holds.")] = None,
) -> None:
    """List what there is to name, or search it."""
    from rlgkd.scripts import listing

    listing.show(what, words or ())


@app.command()
def benchmark(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORKLOAD] [key=value ...]", help="See docs/performance.md; all by default."),
    ] = None,
    peer: Annotated[str, typer.Option(help="trl: the same work by it, alternating; pip install 'rlgkd[trl]'.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each, alternating.")] = 3,
) -> None:
    """Measure speed; one line of JSON for each workload."""
    from rlgkd.scripts.benchmarks import command

    workload, overrides = _split_name(arguments, "")
    command.show(workload, overrides, peer=peer, pairs=pairs)


def _split_name(arguments: Sequence[str] | None, default: str) -> tuple[str, Sequence[str]]:
    """Separate the optional name in front from the `key=value` arguments after it."""
    given = arguments or []
    if given and "=" not in given[0]:
        return given[0], given[1:]
    return default, given


def _split_names(arguments: Sequence[str] | None, default: str) -> tuple[str, str, Sequence[str]]:
    """Separate the recipe under a file, the file or recipe, and the `key=value` arguments after them."""
    name, rest = _split_name(arguments, default)
    file, overrides = _split_file(rest)
    return (name, file, overrides) if file else ("", name, overrides)


def _split_file(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Separate the optional YAML file in front from the `key=value` arguments after it."""
    is_file = bool(arguments) and "=" not in arguments[0] and arguments[0].endswith((".yaml", ".yml"))
    return (arguments[0], arguments[1:]) if is_file else ("", arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error that the user can fix is one line and exit code 2."""
    # transformers draws a bar for every file it opens, over the command's own line.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    given = sys.argv[1:] if arguments is None else arguments
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(ShownFormatter())
    with one_line_errors():
        if given and given[0] != "train":
            check_one_process(f"rlgkd {given[0]}")
        app(args=list(arguments) if arguments is not None else None, prog_name="rlgkd")


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run `main` for a script that is one command."""
    main([command, *(sys.argv[1:] if arguments is None else arguments)])
