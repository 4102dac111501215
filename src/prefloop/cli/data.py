"""prefloop data: what is in a data set, before anything is trained on it."""

import json
from typing import Annotated

import typer

SHOWN_CHARACTERS = 160


def command(
    source: Annotated[str, typer.Argument(help="A file, a folder, or the name of a Hub data set.")],
    kind: Annotated[str, typer.Option(help="text, demonstrations, pairs, labelled or prompts.")] = "pairs",
    model: Annotated[
        str | None, typer.Option(help="Count tokens and show the mask with this model's tokenizer.")
    ] = None,
    prompt_format: Annotated[str, typer.Option(help="auto, chat, plain or raw.")] = "auto",
    max_length: Annotated[int, typer.Option(help="Longest prompt with response, in tokens.")] = 512,
    split: Annotated[str | None, typer.Option(help="Which split to read.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows to read at most.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="ours=theirs, where column names differ.")] = None,
) -> None:
    """Read a data set as training would, and say what becomes of it.

    How many rows are used, which are dropped and why; with a model also tokens, lengths and what is learned from.
    """
    from prefloop.errors import SettingsError

    kinds = ("text", "demonstrations", "pairs", "labelled", "prompts")
    if kind not in kinds:
        raise SettingsError(f"kind is {kind}; it must be one of {', '.join(kinds)}")
    formats = ("auto", "chat", "plain", "raw")
    if prompt_format not in formats:
        raise SettingsError(f"prompt_format is {prompt_format}; it must be one of {', '.join(formats)}")
    strays = [one for one in column or [] if not all(one.partition("="))]
    if strays:
        raise SettingsError(f"--column {strays[0]} is no renaming; write ours=theirs, for example prompt=question")
    columns = dict(one.split("=", 1) for one in column or [])
    if model is not None:
        from prefloop.cli.quiet_libraries import hush

        hush()
    from prefloop.data.sources import read_records, record_to_row

    found = read_records(source, kind=kind, columns=columns or None, split=split, limit=limit)
    if model is None:
        print(f"{found.rows_read:,} rows read, {len(found.records):,} usable, {sum(found.dropped.values()):,} dropped")
        for reason, count in found.dropped.items():
            print(f"  dropped {count:,}: {reason}")
        print(f"the first row, {found.places[0]}:")
        for name, value in record_to_row(found.records[0]).items():
            print(f"  {name}: {_shortened(value)}")
        print("With --model MODEL this also counts tokens and shows what is learned from.")
        return
    from prefloop.data.audit import prepare_groups
    from prefloop.data.chat_format import ChatFormat
    from prefloop.models.backbone import load_tokenizer

    chat_format = ChatFormat(load_tokenizer(model), prompt_format=prompt_format)
    _, _, audit = prepare_groups(
        found.records, chat_format, max_length=max_length, places=found.places, dropped_before=found.dropped
    )
    for line in audit.lines():
        print(line)


def _shortened(value: object) -> str:
    """A value of a row on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
