"""The commands around a run: init, check, watch, list, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlgkd.errors import shown
from rlgkd.scripts.cli.arguments import split_name


def init(
    folder: Annotated[Path, typer.Argument(help="Where; made if it is not there.")] = Path(),
) -> None:
    """Write a project of your own that runs: settings, reward, data, README."""
    from rlgkd.scripts.project import write_project

    for path in write_project(folder):
        typer.echo(path)


def check(
    environment: Annotated[str, typer.Argument(metavar="ENV|FILE.yaml|RECIPE", help="What to check.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each split.")] = 64,
) -> None:
    """Prove an environment: limits, splits, reward on right and wrong answers, checkers. Exit code 1 if one fails."""
    from rlgkd.scripts import env_check
    from rlgkd.scripts.config import reading
    from rlgkd.scripts.config.recipes import recipe_names

    is_settings = environment.endswith((".yaml", ".yml")) or environment in recipe_names()
    given = overrides or ()
    settings = (
        reading.read(environment, given)
        if is_settings
        else reading.check(reading.override({"env": environment}, given))
    )
    failed = 0
    for outcome in env_check.check_environment(settings, prompts):
        failed += outcome.mark == "FAIL"
        typer.echo(shown(str(outcome)))
    if failed:
        raise typer.Exit(1)


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a comparison, which trains or has ended.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes any free one.")] = 8642,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Show the report of a run or comparison live, in a browser on this machine, until Ctrl-C."""
    from rlgkd.scripts import watching

    with watching.server(folder, port) as server:
        address = f"http://{watching.HOST}:{server.server_port}/"
        typer.echo(f"{address} shows {shown(str(folder))}; Ctrl-C ends it")
        if browser:
            import webbrowser

            webbrowser.open(address)
        server.serve_forever()


def list_(
    what: Annotated[
        str, typer.Argument(metavar="[KIND]", help="Such as settings, envs or recipes; the kinds by default.")
    ] = "",
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD ...]", help="That what is listed holds.")] = None,
) -> None:
    """List what there is to name, or search it."""
    from rlgkd.scripts import listing

    listing.show(what, words or ())


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

    workload, overrides = split_name(arguments, "")
    command.show(workload, overrides, peer=peer, pairs=pairs)
