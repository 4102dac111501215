"""prefloop chat: talk to a model, or let two of them answer and choose without knowing which is which."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from prefloop.errors import PrefloopError, SettingsError

if TYPE_CHECKING:
    from prefloop.cli.conversation import Conversation


def command(
    models: Annotated[list[str], typer.Argument(help="One or two: run folders, model folders or Hub names.")],
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 200,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Whether it sees what was said before.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    store: Annotated[
        str | None, typer.Option(help="With two models: the label project that keeps your choices; else chats.db.")
    ] = None,
    name: Annotated[str, typer.Option(help="With two models: who chooses.")] = "me",
) -> None:
    """Talk to a model, or compare two of them blind.

    One model's answer streams. Two answer side by side; your choice goes on with the conversation and into a label
    project, and in the end you see who won how often. /help lists what else can be typed.
    """
    if len(models) > 2:
        raise SettingsError(f"{len(models)} models were given; talk to one, or compare two")
    if store is not None and len(models) == 1:
        raise SettingsError("--store keeps choices between two models, and one was given")
    from prefloop.cli.model_folders import model_folder
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.cli.conversation import Conversation
    from prefloop.randomness import derived_seed
    from prefloop.runs.stage_context import read_policy

    talks = []
    for number, model in enumerate(models):
        policy, chat_format = read_policy(model_folder(model), precision="float32")
        talks.append(
            Conversation(
                policy,
                chat_format,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                keeps_history=history,
                seed=seed if len(models) == 1 else derived_seed(seed, "compared answers", number),
            )
        )
    if len(talks) == 1:
        talk_to_one(talks[0], models[0])
        return
    from prefloop.cli.chat_compare import compare_in_terminal

    compare_in_terminal(
        (talks[0], talks[1]), (models[0], models[1]), location=store or "chats.db", name=name, stdin=sys.stdin
    )


def talk_to_one(talk: "Conversation", model: str) -> None:
    """Reads lines and streams answers until the person leaves."""
    print(f"{model}: ask it something. /help lists what else can be typed; Ctrl-D leaves.")
    while (line := next_line()) is not None:
        if line.startswith("/"):
            print(talk.command(line))
        elif line:
            try:
                talk.answer(line)
            except KeyboardInterrupt:
                print(" (stopped)")
            except PrefloopError as problem:
                print(f"({problem})")


def next_line() -> str | None:
    """What the person types; None when the person leaves."""
    try:
        line = input("you> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line == "/quit" else line
