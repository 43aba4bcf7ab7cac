"""The command line: `rlgkd COMMAND`; `python scripts/COMMAND.py` does the same from a checkout.

Each command imports what it runs when it runs, so that `rlgkd --help` imports neither torch nor transformers.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer

from rlgkd import __version__
from rlgkd.scripts._console import ShownFormatter, lasting_streams
from rlgkd.scripts._errors import check_one_process, one_line_errors
from rlgkd.scripts.cli import models, projects, training

LONG = ("train", "compare", "teach")
"""Commands that work on where nobody reads what they print."""
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts hold brackets, as in rlgkd[trl], which markup would take out
)


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


for _command in (
    training.train,
    training.compare,
    models.evaluate,
    training.teach,
    models.generate,
    models.cut,
    models.align,
    projects.check,
    projects.init,
    models.push,
    projects.watch,
):
    app.command()(_command)
app.command("list")(projects.list_)
app.command()(projects.benchmark)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error that the user can fix is one line and exit code 2."""
    # transformers draws a bar for every file it opens, over the command's own line.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Figures go into files; matplotlib's import fails by a notebook's backend that is not here.
    os.environ["MPLBACKEND"] = "agg"
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.closed:
        # A letter that the locale lacks is shown as its code.
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.closed:
        # Bytes that are no text are refused as a prompt, with their code.
        sys.stdin.reconfigure(errors="surrogateescape")
    given = sys.argv[1:] if arguments is None else arguments
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(ShownFormatter())
    lasting = lasting_streams() if given and given[0] in LONG else nullcontext()
    with lasting, one_line_errors():
        if given and given[0] != "train":
            check_one_process(f"rlgkd {given[0]}")
        app(args=list(arguments) if arguments is not None else None, prog_name="rlgkd")


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run `main` for a script that is one command."""
    main([command, *(sys.argv[1:] if arguments is None else arguments)])
