"""The commands that use a model: evaluate, generate, cut, align, push."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rlgkd.errors import SettingError, shown
from rlgkd.scripts.cli.arguments import MinP, SamplingSeed, TopK, TopP, split_file


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

    file, over = split_file(overrides or [])
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
        typer.echo(shown(completion) if sys.stdout is not None and sys.stdout.isatty() else completion)

    def read_line() -> str | None:
        if sys.stdin is None:  # closed
            return None
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


def align(
    student: Annotated[str, typer.Argument(help="The student's name or path.")],
    teacher: Annotated[str, typer.Argument(help="The teacher's, which has another tokenizer.")],
    out: Annotated[Path, typer.Option(help="File for the map, which teacher_map names.")] = Path("map.safetensors"),
) -> None:
    """Write the map from a teacher's tokens to a student's with another tokenizer."""
    from rlgkd.scripts.runs import align as aligning

    aligning.align(student, teacher, out)
