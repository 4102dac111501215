"""prefloop label: collect people's choices, know how far they agree, hand them on."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Choose between two answers; know how far people agree.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Store = Annotated[str, typer.Argument(help="The label project: a SQLite file or a postgresql:// URL.")]


def serve(
    store: Store = "labels.db",
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need accounts.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8765,
    name: Annotated[str, typer.Option(help="Whose personal link is printed and opened.")] = "me",
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Another name (with port) under which people come; repeat for several.")
    ] = None,
    public_url: Annotated[str | None, typer.Option(help="Address of the https proxy in front.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Serve the label page.

    The first time, you become its admin. Give others their own links with `prefloop label person`.
    """
    from prefloop.collection.store import open_store
    from prefloop.web.label_server import first_link
    from prefloop.web.label_server import serve as serve_page
    from prefloop.web.listening import is_loopback

    with open_store(store, must_exist=True) as project:
        knows_me = not project.accounts() or name in [account.name for account in project.accounts()]
        links = first_link(project, name) if is_loopback(host) and knows_me else {}
        serve_page(
            project,
            host=host,
            port=port,
            links=links,
            allowed_hosts=allowed_host or (),
            public_url=public_url,
            open_browser=browser,
            say=lambda line: print(line, flush=True),
        )


def terminal(
    store: Store = "labels.db",
    name: Annotated[str, typer.Option(help="Who chooses.")] = "me",
) -> None:
    """Label in the terminal, with the page's keys."""
    from prefloop.cli.label_shown import counted
    from prefloop.cli.label_terminal import label_in_terminal
    from prefloop.collection.store import open_store

    with open_store(store, must_exist=True) as project:
        if not any(account.name == name for account in project.accounts()):
            project.add_account(name, role="annotator" if project.accounts() else "admin")
        num = label_in_terminal(project, name, stdin=sys.stdin)
    print(f"{counted(num, 'label')} kept in {store}")


def person(
    name: Annotated[str, typer.Argument(help="Who may label.")],
    store: Annotated[str, typer.Option(help="The label project.")] = "labels.db",
    admin: Annotated[bool, typer.Option("--admin", help="May see the statistics of everybody.")] = False,
    password: Annotated[bool, typer.Option("--password", help="Ask for a password to sign in with.")] = False,
    new_link: Annotated[
        bool, typer.Option("--new-link", help="A new link for a known person; the old one ends.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="End this person's access. The labels stay.")] = False,
    url: Annotated[str, typer.Option(help="Where the page is served.")] = "http://127.0.0.1:8765",
) -> None:
    """Add a person, and print the personal link.

    The link is shown only once.
    """
    from prefloop.collection.store import open_store

    secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if password else None
    with open_store(store, must_exist=True) as project:
        if remove:
            project.deactivate(name)
            print(f"{name} can no longer sign in; the labels stay.")
            return
        if new_link:
            token = project.new_link(name)
            if secret is not None:
                project.set_password(name, secret)
        else:
            token = project.add_account(name, role="admin" if admin else "annotator", password=secret)
    print(f"{name}: {url.rstrip('/')}/join/{token}\nThis link is personal and is not shown again.")


def settings(
    store: Store = "labels.db",
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    guidelines: Annotated[Path | None, typer.Option(help="A text file with the guidelines.")] = None,
) -> None:
    """Show or change a project's rules.

    Where there is no project yet, settings to change make one.
    """
    from prefloop.cli.label_shown import settings_table
    from prefloop.collection.label_records import ProjectSettings
    from prefloop.collection.store import open_store
    from prefloop.errors import DataError
    from prefloop.runs.settings import merge, parse_overrides, validate

    changed = parse_overrides(overrides or [])
    if guidelines is not None:
        try:
            changed["guidelines"] = guidelines.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"the guidelines in {guidelines} cannot be read: {problem}") from problem
    # Merely looking makes nothing: a mistyped name would leave an empty project behind.
    with open_store(store, must_exist=not changed) as project:
        if changed:
            merged = merge(project.settings.model_dump(), changed)
            project.update_settings(validate(ProjectSettings, merged, origin="the project's settings"))
        settings_table(project.settings)


def import_labels(
    source: Annotated[Path, typer.Argument(help="A file of pairs, preferences or labels, or a folder from `export`.")],
    store: Annotated[str, typer.Option(help="The label project; made when it is not there yet.")] = "labels.db",
    form: Annotated[
        str,
        typer.Option(help="auto, pairs, preference, hh, argilla, label_studio, annotators, long or export."),
    ] = "auto",
    annotator: Annotated[str, typer.Option(help="Who chose, in files that do not say.")] = "imported",
    column: Annotated[
        list[str] | None, typer.Option(help="OURS=THEIRS: our name of a column and the file's; repeat for several.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="VALUE=CHOICE: what a value stands for, as 0=tie; repeat for all.")
    ] = None,
    annotator_column: Annotated[
        list[str] | None, typer.Option(help="A column of one annotator's choices; repeat for several.")
    ] = None,
    other_columns: Annotated[
        str, typer.Option(help="Unknown columns: refuse, keep (with the pair) or drop.")
    ] = "refuse",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count rows that cannot be used.")] = False,
) -> None:
    """Read pairs, and any labels, from a file: all of it or nothing."""
    from collections import Counter

    from prefloop.collection.label_records import ProjectSettings
    from prefloop.collection.store import open_store
    from prefloop.data.label_imports import read_label_file

    found = read_label_file(
        source,
        form=form,  # type: ignore[arg-type]  # checked there
        annotator=annotator,
        columns=_assignments(column, "--column"),
        choices=_assignments(choice, "--choice"),  # type: ignore[arg-type]
        annotator_columns=annotator_column,
        other_columns=other_columns,  # type: ignore[arg-type]
        skip_bad=skip_bad,
    )
    is_new = "://" not in store and not Path(store).exists()
    most = max(Counter(label.pair_id for label in found.labels).values(), default=0)
    wanted = ProjectSettings(annotators_per_pair=most) if is_new and most else None
    with open_store(store, settings=wanted) as project:
        added = project.add_pairs(found.pairs)
        num_labels = project.import_labels(found.labels) if found.labels else 0
    print(f"{source} ({found.form}): {found.rows_read:,} rows")
    for reason, count in (found.dropped | found.dropped_labels).items():
        print(f"  left out {count:,}: {reason}")
    print(f"{added.num_added:,} pairs and {num_labels:,} labels added to {store}; {added.num_known:,} pairs were there")
    print(f"Next:\n  {shlex.join(['prefloop', 'label', 'stats' if num_labels else 'serve', store])}")


def stats(
    store: Store = "labels.db",
    file: Annotated[
        Path | None, typer.Option(help="A file of labels instead of a project, with every row as it stands.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures, machine-readable.")] = False,
    seed: Annotated[int, typer.Option(help="Of the intervals' resampling.")] = 0,
) -> None:
    """How far people agree, and how each of them labels."""
    import json
    from dataclasses import asdict

    from prefloop.cli.label_shown import label_statistics_tables
    from prefloop.collection.label_statistics import label_statistics
    from prefloop.collection.store import open_store

    if file is not None:
        from prefloop.data.label_imports import read_label_file

        read = read_label_file(file, other_columns="keep", as_given=True)
        pairs, labels = read.pairs, read.labels
    else:
        with open_store(store, must_exist=True) as project:
            pairs, labels = project.pairs(), project.current_labels()
    found = label_statistics(pairs, labels, seed=seed)
    if as_json:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        label_statistics_tables(found)


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one of an earlier export.")],
    store: Annotated[str, typer.Option(help="The label project.")] = "labels.db",
    aggregation: Annotated[
        str, typer.Option(help="majority or dawid_skene (weighs people by reliability).")
    ] = "majority",
    ties: Annotated[str, typer.Option(help="half (half a vote to each side) or drop.")] = "half",
    both_bad: Annotated[str, typer.Option(help="tie (counts as one) or drop.")] = "tie",
    min_annotators: Annotated[int, typer.Option(help="Votes that a pair needs.")] = 1,
    validation_share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the prompts.")] = 0.05,
    test_share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the prompts.")] = 0.05,
    gold: Annotated[bool, typer.Option("--gold", help="Gold pairs too.")] = False,
    names: Annotated[bool, typer.Option("--names", help="People's names instead of pseudonyms.")] = False,
    rationales: Annotated[bool, typer.Option("--rationales", help="What people wrote, too.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split and the intervals.")] = 0,
) -> None:
    """Write a preference data set that trainers read.

    Its card says how it was made and how far people agreed.
    """
    from prefloop.collection.store import open_store
    from prefloop.data.label_exports import export_preferences

    shares = {"train": 1 - validation_share - test_share, "validation": validation_share, "test": test_share}
    with open_store(store, must_exist=True) as project:
        report = export_preferences(
            project.pairs(),
            project.current_labels(),
            folder,
            aggregation=aggregation,  # type: ignore[arg-type]  # checked there
            ties=ties,  # type: ignore[arg-type]
            both_bad=both_bad,  # type: ignore[arg-type]
            shares={part: share for part, share in shares.items() if share > 0},
            min_annotators=min_annotators,
            seed=seed,
            settings=project.settings,
            include_gold=gold,
            with_names=names,
            with_rationales=rationales,
            num_events=len(project.events()),
        )
    print(f"{report.num_preferences:,} preferences from {report.num_pairs:,} pairs, in {report.folder}:")
    for file, count in report.num_rows.items():
        print(f"  {file}: {count:,} rows")
    for reason, count in report.dropped.items():
        print(f"  left out {count:,}: {reason}")
    for note in report.notes:
        print(f"  {note}")
    print(f"The card: {report.folder / 'README.md'}")


def backup(
    target: Annotated[Path, typer.Argument(help="A file that is not there yet.")],
    store: Annotated[str, typer.Option(help="The label project, in SQLite.")] = "labels.db",
) -> None:
    """Copy a project, even in use, and check the copy."""
    from prefloop.collection.store import open_store

    with open_store(store, must_exist=True) as project:
        project.backup(target)
    print(f"copied to {target}, and the copy is sound")


def check(store: Store = "labels.db") -> None:
    """Look for anything in a project that should not be."""
    from prefloop.collection.store import open_store
    from prefloop.errors import DataError

    with open_store(store, must_exist=True) as project:
        problems = project.check()
        num = len(project.events())
    if problems:
        raise DataError(f"{store} has {len(problems)} faults:\n  " + "\n  ".join(problems))
    print(f"{store} is sound: {num:,} events")


SUBVERBS = {
    "serve": serve,
    "terminal": terminal,
    "person": person,
    "settings": settings,
    "import": import_labels,
    "stats": stats,
    "export": export,
    "backup": backup,
    "check": check,
}


def _assignments(given: list[str] | None, option: str) -> dict[str, str] | None:
    """KEY=VALUE options as a dictionary. Raises SettingsError for one that is no assignment."""
    from prefloop.errors import SettingsError

    if not given:
        return None
    if wrong := [one for one in given if "=" not in one.strip("=")]:
        raise SettingsError(f"{option} {wrong[0]} is no assignment; write it as NAME=VALUE.")
    parts = [one.partition("=") for one in given]
    return {key: value for key, _, value in parts}
