"""prefloop report: one offline page from a run or a whole pipeline."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a pipeline.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Render report.html again and say where it is."""
    import webbrowser

    from prefloop.web.report import render_report

    page = render_report(folder)
    print(page)
    if open_page:
        webbrowser.open(page.resolve().as_uri())
