"""prefloop data: what is in a data set, before anything is trained on it."""

from typing import Annotated

import typer


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
    """Read a data set as training would, and say what is used, what is dropped and why."""
    from typing import get_args

    from prefloop.errors import SettingsError

    kinds = ("text", "demonstrations", "pairs", "labelled", "prompts")
    if kind not in kinds:
        raise SettingsError(f"kind is {kind}; it must be one of {', '.join(kinds)}")
    columns = dict(one.split("=", 1) for one in column or [] if "=" in one)
    from prefloop.data.sources import read_records

    found = read_records(source, kind=kind, columns=columns or None, split=split, limit=limit)  # type: ignore[arg-type]
    print(f"{found.rows_read:,} rows read, {len(found.records):,} usable, {sum(found.dropped.values()):,} dropped")
    for reason, count in found.dropped.items():
        print(f"  dropped {count:,}: {reason}")
    if model is None:
        print("first row:", found.records[0])
        print("With --model MODEL this also counts tokens and shows what is learned from.")
        return
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.data.audit import prepare_groups
    from prefloop.data.chat_format import ChatFormat, PromptFormat
    from prefloop.models.backbone import load_tokenizer

    if prompt_format not in get_args(PromptFormat):
        raise SettingsError(f"prompt_format is {prompt_format}; it must be one of {', '.join(get_args(PromptFormat))}")
    chat_format = ChatFormat(load_tokenizer(model), prompt_format=prompt_format)  # type: ignore[arg-type]
    _, _, audit = prepare_groups(
        found.records, chat_format, max_length=max_length, places=found.places, dropped_before=found.dropped
    )
    for line in audit.lines():
        print(line)
