"""Pairs and labels from files of other tools, and from our own exports; all of a file or nothing of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from prefloop.collection.label_records import LabelEvent, StoredPair
from prefloop.data.label_exports import FORMAT, FORMAT_VERSION
from prefloop.data.label_import_forms import TABLE_FORMS, table_form_of
from prefloop.data.label_import_values import (
    CHOICE_VALUES,
    BadRow,
    GivenLabel,
    GivenRow,
    ImportOptions,
    OtherColumns,
    UnknownColumn,
    check_texts,
)
from prefloop.data.label_rows import IMPORTED, label_event_from_row, stored_pair_from_row
from prefloop.data.label_tool_exports import argilla_row, is_argilla, is_label_studio, label_studio_row, renamed
from prefloop.data.row_files import Problems, Row, read_file
from prefloop.data.sources import SourceFile
from prefloop.errors import DataError, NothingUsableError, SettingsError
from prefloop.records import Choice

LabelForm = Literal["auto", "pairs", "preference", "hh", "annotators", "long", "argilla", "label_studio", "export"]

SAME_ROW = "the same pair again"
SAME_LABEL = "the same label again"
OTHER_CONTENT = "same id with other content"
OTHER_CHOICE = "same annotator with another label"


@dataclass(frozen=True)
class ImportedLabels:
    """What a file holds. Labels are by the pair's own sides, and each `displayed_choice` equals its `choice`.

    `rows_read` counts the file's rows, `dropped` those left out by reason, `dropped_labels` single labels left out of
    rows that were used. Times that the file does not have are 0.
    """

    form: LabelForm
    pairs: list[StoredPair]
    labels: list[LabelEvent]
    rows_read: int
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_labels: dict[str, int] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)


def read_label_file(
    path: str | Path,
    *,
    form: LabelForm = "auto",
    annotator: str = "imported",
    columns: Mapping[str, str] | None = None,
    choices: Mapping[str, Choice] | None = None,
    annotator_columns: Sequence[str] | None = None,
    question: str | None = None,
    other_columns: OtherColumns = "refuse",
    skip_bad: bool = False,
    as_given: bool = False,
) -> ImportedLabels:
    """The pairs and labels of a file (.jsonl, .json, .csv, each also .gz, or .parquet) or of a folder that we exported.

    Forms: "pairs" (prompt and two answers), "preference" (prompt, chosen, rejected as trainers take them, strings or
    messages; without a prompt, what both share), "hh" (two whole dialogues), "annotators" (a column of choices for each
    annotator), "long" (a row for each annotator and pair), "argilla", "label_studio", "export"; "auto" finds out.

    `annotator` names whoever made choices that the file leaves anonymous. `columns` maps our column names (prompt,
    left, right, ...) to the file's. `choices` says what values stand for, in place of `CHOICE_VALUES`.
    `annotator_columns` are the columns of "annotators" where they are not called annotator1, annotator2, ...
    `question` is the one to read of an Argilla record. `other_columns` are refused, kept in `details`, or dropped. In
    "preference" and "hh" the sides are drawn by a hash of the pair id, so neither is always the chosen one.

    Unusable rows are errors; with `skip_bad` they are left out and counted. They are: a missing, empty or non-text
    answer, equal answers (but for spaces), an unknown choice, a NUL character, an id that stands for other content
    before, another label of the same annotator on the same pair, a malformed value. `as_given` accepts empty prompts
    and answers, and takes true, false and numbers as answers by their text: for measuring agreement on published data
    (a label store takes no empty answer).

    Raises DataError with up to 20 places by file and line; nothing is half-read. NothingUsableError where every row was
    dropped; SettingsError for unknown settings.
    """
    _check_settings(form, choices, other_columns)
    path = Path(path).expanduser()
    if path.is_dir() or form == "export":
        return _read_export(path)
    if not path.exists():
        raise DataError(f"There is no file {path}; give an existing one.")
    problems = Problems()
    rows, sha256 = read_file(path, problems)
    problems.raise_any()
    if not rows:
        raise DataError(f"{path} holds no rows; give a file with at least one.")
    options = ImportOptions(
        annotator=annotator,
        choices=CHOICE_VALUES if choices is None else {str(key).lower(): value for key, value in choices.items()},
        annotator_columns=annotator_columns,
        question=question,
        other_columns=other_columns,
        as_given=as_given,
    )
    found = _form_of(rows, columns or {}, annotator_columns) if form == "auto" else form
    read = _reader(found, columns or {}, options)
    gathered = _Gathered()
    for row in rows:
        gathered.take(row, read, problems, skip_bad=skip_bad)
    problems.raise_any()
    if not gathered.pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in gathered.dropped.items())
        raise NothingUsableError(f"No row of {path} is left: all {len(rows)} were dropped ({reasons}).")
    source: SourceFile = {"path": str(path), "sha256": sha256, "rows": len(rows)}
    return ImportedLabels(
        form=found,
        pairs=list(gathered.pairs.values()),
        labels=gathered.events(),
        rows_read=len(rows),
        dropped=dict(gathered.dropped),
        dropped_labels=dict(gathered.dropped_labels),
        files=[source],
    )


def _check_settings(form: str, choices: Mapping[str, Choice] | None, other_columns: str) -> None:
    if form not in get_args(LabelForm):
        raise SettingsError(f"form is {form!r}; it must be one of {', '.join(get_args(LabelForm))}.")
    if other_columns not in get_args(OtherColumns):
        raise SettingsError(
            f"other_columns is {other_columns!r}; it must be one of {', '.join(get_args(OtherColumns))}."
        )
    for value, choice in (choices or {}).items():
        if choice not in get_args(Choice):
            raise SettingsError(f"choices maps {value!r} to {choice!r}; allowed: {', '.join(get_args(Choice))}.")


def _form_of(rows: Sequence[Row], columns: Mapping[str, str], annotator_columns: Sequence[str] | None) -> LabelForm:
    # A row may lack a column that others have, so all of them say what the file is.
    row = Row(rows[0].place, {name: value for row in reversed(rows) for name, value in row.values.items()})
    if is_label_studio(row.values):
        return "label_studio"
    if is_argilla(row.values):
        return "argilla"
    try:
        found = table_form_of(renamed(row.values, columns))
    except BadRow as problem:
        forms = ", ".join(form for form in get_args(LabelForm) if form != "auto")
        raise DataError(
            f"{row.place}: the columns fit no form of labels: {problem}. Or give the form: {forms}."
        ) from None
    return "annotators" if found == "pairs" and annotator_columns else found


def _reader(form: LabelForm, columns: Mapping[str, str], options: ImportOptions) -> Callable[[Row], GivenRow]:
    if form == "argilla":
        return lambda row: argilla_row(row, columns, options)
    if form == "label_studio":
        return lambda row: label_studio_row(row, columns, options)
    assert form not in ("auto", "export")
    read = TABLE_FORMS[form]
    return lambda row: read(Row(row.place, renamed(row.values, columns), row.typed), options)


class _Gathered:
    """The pairs and labels of the rows so far."""

    def __init__(self) -> None:
        self.pairs: dict[str, StoredPair] = {}
        self.labels: dict[tuple[str, str], GivenLabel] = {}
        self.dropped: Counter[str] = Counter()
        self.dropped_labels: Counter[str] = Counter()
        self._place_of: dict[str, str] = {}
        self._said: set[str] = set()

    def take(self, row: Row, read: Callable[[Row], GivenRow], problems: Problems, *, skip_bad: bool) -> None:
        try:
            check_texts(row.values)
            self._add(row.place, read(row))
        except UnknownColumn as problem:
            # The same for every row: said once.
            if str(problem) not in self._said:
                self._said.add(str(problem))
                problems.add(row.place, str(problem))
        except BadRow as problem:
            if skip_bad:
                self.dropped[problem.reason] += 1
            else:
                problems.add(row.place, str(problem))

    def _add(self, place: str, given: GivenRow) -> None:
        pair_id = given.pair.comparison.pair_id
        known = self.pairs.get(pair_id)
        if known is not None and known != given.pair:
            if known.comparison == given.pair.comparison.swap():
                what = (
                    f"the pair {pair_id!r} stands at {self._place_of[pair_id]} with its sides exchanged; use one order"
                )
                raise BadRow(OTHER_CONTENT, what)
            raise BadRow(OTHER_CONTENT, f"the id {pair_id!r} has other content at {self._place_of[pair_id]}")
        fresh: dict[tuple[str, str], GivenLabel] = {}
        num_same = 0
        for label in given.labels:
            key = pair_id, label.annotator
            earlier = self.labels.get(key) or fresh.get(key)
            if earlier is None:
                fresh[key] = label
            elif (earlier.choice, earlier.strength, earlier.rationale) == (
                label.choice, label.strength, label.rationale,
            ):  # fmt: skip
                num_same += 1
            else:
                raise BadRow(
                    OTHER_CHOICE,
                    f"{label.annotator!r} has two different labels on pair {pair_id!r} (first at "
                    f"{self._place_of.get(pair_id, place)})",
                )
        if known is not None and not given.labels:
            self.dropped[SAME_ROW] += 1
        self.pairs.setdefault(pair_id, given.pair)
        self._place_of.setdefault(pair_id, place)
        self.labels.update(fresh)
        self.dropped_labels.update(given.dropped_labels)
        if num_same:
            self.dropped_labels[SAME_LABEL] += num_same

    def events(self) -> list[LabelEvent]:
        return [
            _event(number, pair_id, label) for number, ((pair_id, _), label) in enumerate(self.labels.items(), start=1)
        ]


def _event(number: int, pair_id: str, label: GivenLabel) -> LabelEvent:
    """The label as an event. Its submission id depends on pair and annotator alone, so a second import adds nothing."""
    digest = hashlib.sha256(json.dumps([pair_id, label.annotator]).encode()).hexdigest()
    return LabelEvent(
        event_id=number,
        submission_id=f"import-{digest[:32]}",
        event="label",
        pair_id=pair_id,
        kind="regular",
        annotator=label.annotator,
        choice=label.choice,
        displayed_choice=label.choice,
        swapped=False,
        strength=label.strength,
        rationale=label.rationale,
        opened_at=label.opened_at,
        submitted_at=label.submitted_at,
        received_at=label.submitted_at,
        revision=1,
        client_version=IMPORTED,
        chosen_by="random",
        details=dict(label.details),
    )


# --- our own exports ------------------------------------------------------------------------------------------------


def _read_export(folder: Path) -> ImportedLabels:
    """The pairs and labels of a folder that `export_preferences` wrote, after checking it against its manifest."""
    manifest = _manifest(folder)
    problems = Problems()
    files: list[SourceFile] = []
    rows: dict[str, list[Row]] = {}
    for name in ("pairs.jsonl", "labels.jsonl"):
        if name not in manifest["files"]:
            raise DataError(f"{folder / 'manifest.json'} does not name {name}; export the labels again.")
        rows[name], sha256 = read_file(folder / name, problems)
        if sha256 != manifest["files"][name]["sha256"]:
            raise DataError(
                f"{folder / name} is not the file that was exported: its SHA-256 differs from manifest.json. Export "
                "again, or import the changed file alone under another form."
            )
        files.append({"path": str(folder / name), "sha256": sha256, "rows": len(rows[name])})
    pairs = _each(rows["pairs.jsonl"], stored_pair_from_row, problems)
    labels = _each(rows["labels.jsonl"], label_event_from_row, problems)
    known = {pair.comparison.pair_id for pair in pairs}
    for row in rows["labels.jsonl"]:
        if row.values.get("pair_id") not in known:
            problems.add(row.place, f"the pair {row.values.get('pair_id')!r} is not in pairs.jsonl")
    problems.raise_any()
    return ImportedLabels("export", pairs, labels, sum(map(len, rows.values())), files=files)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} is no export of labels: {path.name} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); export the labels again.") from error
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise DataError(f"{path} is no manifest of exported labels; give a folder that an export wrote.")
    if manifest.get("version") != FORMAT_VERSION:
        raise DataError(f"{path} has version {manifest.get('version')!r}; this program reads version {FORMAT_VERSION}.")
    return manifest


_Read = TypeVar("_Read")


def _each(rows: Sequence[Row], read: Callable[[Mapping[str, Any]], _Read], problems: Problems) -> list[_Read]:
    found: list[_Read] = []
    for row in rows:
        try:
            check_texts(row.values)
            found.append(read(row.values))
        except (DataError, BadRow) as problem:
            problems.add(row.place, str(problem).rstrip("."))
    return found
