"""prefloop serve: a model behind the OpenAI API."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a Hub name.")],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8766,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="PREFLOOP_API_KEY", help="What clients must show; better set as PREFLOOP_API_KEY."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; else the name of its folder.")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Another name (with port) under which clients come; repeat for several.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=0, help="The most requests that wait for the model.")] = 16,
) -> None:
    """Serve a model with the OpenAI API."""
    from prefloop.cli.model_folders import model_folder
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.runs.stage_context import read_policy
    from prefloop.web.completion_engine import CompletionEngine
    from prefloop.web.completion_server import check_address, serve

    check_address(host, api_key=api_key, allowed_hosts=allowed_host or ())
    policy, chat_format = read_policy(model_folder(model), precision="float32")
    engine = CompletionEngine(
        policy,
        chat_format,
        name=name or served_name(model),
        max_new_tokens=max_new_tokens,
        max_waiting=max_waiting,
    )
    try:
        serve(
            engine,
            host=host,
            port=port,
            api_key=api_key,
            allowed_hosts=allowed_host or (),
            say=lambda line: print(line, flush=True),
        )
    finally:
        engine.close()


def served_name(place: str) -> str:
    """A folder's own name (of a final/ that of its run), so that clients learn no paths; a Hub name as it is."""
    path = Path(place)
    if not path.exists():
        return place
    path = path.resolve()
    return path.parent.name if path.name == "final" else path.name
