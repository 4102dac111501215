"""Records from a file, a folder of splits or a data set on the Hugging Face Hub, every row accounted for."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, get_args

from prefloop.data.record_forms import DUPLICATE, Kind, Record, RowDropped, RowProblem, form_of, with_our_names
from prefloop.data.row_files import SUFFIXES, Problems, Row, data_suffix, read_file
from prefloop.errors import DataError, NothingUsableError, SettingsError
from prefloop.hub import no_vain_waiting
from prefloop.records import Demonstration, LabelledText, PreferencePair, Prompt, TextExample

SPLIT_NAMES = {"train": ("train",), "test": ("test",), "validation": ("validation", "dev")}


class SourceFile(TypedDict):
    """A file that was read: its path, the SHA-256 of its bytes (of its rows, for the Hub), and its rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class ReadResult:
    """What was read. `rows_read` is the number of records plus the dropped rows, whose reasons `dropped` counts.

    `places` says for each record where it stands (file:line).
    """

    kind: Kind
    records: list[Any]
    places: list[str]
    rows_read: int
    dropped: dict[str, int]
    files: list[SourceFile]

    def __post_init__(self) -> None:
        assert self.rows_read == len(self.records) + sum(self.dropped.values()), "a row vanished"
        assert len(self.places) == len(self.records)


def read_records(
    source: str | Path,
    *,
    kind: Kind,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> ReadResult:
    """The records of `kind` in `source`.

    `source` is a file (.jsonl, .json, .csv, each also .gz, or .parquet), a folder of files that are named after their
    splits, or the name of a data set on the Hub. `split` is "train" where it is not given; a file, or the only file of
    a folder, is its train split. `columns` maps our column names to the data's; `limit` reads the first rows only.

    Rows that are well formed and useless are dropped and counted: empty prompts, completions and texts, pairs whose two
    answers are equal up to whitespace, pairs without a shared prompt, conversations without a last answer, labels that
    are neither 0 nor 1, exact duplicates.

    Raises DataError for a source that cannot be read, for columns that do not fit, for malformed rows (up to 20 by
    file and line, then their number), and where no row is left; SettingsError for an unknown kind or a limit below 1.
    """
    if kind not in get_args(Kind):
        raise SettingsError(f"kind is {kind!r}; it must be one of {', '.join(get_args(Kind))}.")
    if limit is not None and limit < 1:
        raise SettingsError(f"limit is {limit}; it must be at least 1.")
    problems = Problems()
    path = Path(source).expanduser()
    if path.exists():
        rows, files = _rows_of_files(_files_of_split(path, split), problems)
    elif _names_a_hub_data_set(source):
        rows, files = _rows_of_hub(str(source), split or "train")
    else:
        raise DataError(f"There is no file or folder {source}; give an existing path, or a Hub name like owner/name.")
    rows = rows[:limit]
    if not rows:
        problems.raise_any()
        raise DataError(f"{source} holds no rows; give a file with at least one.")
    records, places, dropped = _records_of_rows(rows, kind, columns or {}, str(source), problems)
    problems.raise_any()
    if not records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise NothingUsableError(f"No row of {source} is left: all {len(rows)} were dropped ({reasons}).")
    return ReadResult(kind, records, places, len(rows), dropped, files)


def _records_of_rows(
    rows: list[Row], kind: Kind, columns: Mapping[str, str], source: str, problems: Problems
) -> tuple[list[Record], list[str], dict[str, int]]:
    form = form_of(kind, list(rows[0].values), columns, source=source)
    records: list[Record] = []
    places: list[str] = []
    dropped: Counter[str] = Counter()
    seen: set[Record] = set()
    for row in rows:
        try:
            record = form.make(with_our_names(row, columns))
        except RowDropped as reason:
            dropped[str(reason)] += 1
        except RowProblem as problem:
            problems.add(row.place, str(problem))
        else:
            if record in seen:
                dropped[DUPLICATE] += 1
                continue
            seen.add(record)
            records.append(record)
            places.append(row.place)
    return records, places, dict(dropped)


# --- where the rows are ---------------------------------------------------------------------------------------------


def _files_of_split(path: Path, split: str | None) -> list[Path]:
    """The file itself, or the folder's files of the split (several only where they are numbered shards)."""
    if path.is_file():
        if split not in (None, "train"):
            raise DataError(f"split={split} was asked of the single file {path}; give the file of that split instead.")
        return [path]
    found = sorted(child for child in path.iterdir() if child.is_file() and data_suffix(child))
    wanted = next((names for names in SPLIT_NAMES.values() if split in names), (split,)) if split else ("train",)
    chosen = [child for child in found if _split_of(child) in wanted]
    if not chosen and split is None and len(found) == 1:
        return found
    if not chosen:
        names = ", ".join(child.name for child in found) or "no data file"
        raise DataError(
            f"The folder {path} has no file for the split {wanted[0]}; it holds {names}. Name a file "
            f"{wanted[0]}{SUFFIXES[0]}, or choose another split."
        )
    if len(chosen) > 1 and not all("-of-" in child.name for child in chosen):
        names = ", ".join(child.name for child in chosen)
        raise DataError(f"The folder {path} has several files for the split {wanted[0]} ({names}); give one of them.")
    return chosen


def _split_of(path: Path) -> str:
    """train.jsonl.gz and train-00000-of-00002.parquet both belong to train."""
    return re.sub(r"-\d+-of-\d+$", "", path.name.lower().removesuffix(".gz").rpartition(".")[0])


def _rows_of_files(paths: list[Path], problems: Problems) -> tuple[list[Row], list[SourceFile]]:
    rows: list[Row] = []
    files: list[SourceFile] = []
    for path in paths:
        more, sha256 = read_file(path, problems)
        rows.extend(more)
        files.append({"path": str(path), "sha256": sha256, "rows": len(more)})
    return rows, files


def _names_a_hub_data_set(source: str | Path) -> bool:
    return (
        isinstance(source, str)
        and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) is not None
        and data_suffix(Path(source)) is None
    )


def _rows_of_hub(name: str, split: str) -> tuple[list[Row], list[SourceFile]]:
    # Loaded here because it takes a second that local files do not need.
    import datasets

    try:
        with no_vain_waiting():
            loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # The loader raises errors of many libraries; each means that there are no rows.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # Offline is what we made of a Hub without an address; nobody has switched it on.
        reason = reason.removesuffix(" (OfflineModeIsEnabled)")
        raise DataError(
            f"The Hub data set {name!r} (split {split}) could not be loaded: {reason.rstrip('.')}. A local file or "
            "folder can be given instead with data=PATH."
        ) from error
    values: list[dict[str, Any]] = [dict(row) for row in loaded]
    fingerprint = hashlib.sha256()
    for row in values:
        fingerprint.update(json.dumps(row, sort_keys=True, default=str).encode())
    rows = [Row(f"{name}[{split}]: row {number}", row) for number, row in enumerate(values, start=1)]
    return rows, [{"path": f"{name}[{split}]", "sha256": fingerprint.hexdigest(), "rows": len(rows)}]


# --- writing --------------------------------------------------------------------------------------------------------


def record_to_row(record: Record) -> dict[str, Any]:
    """The row that `read_records` reads back as the same record."""
    if isinstance(record, TextExample):
        return {"text": record.text}
    if isinstance(record, Demonstration):
        return {"prompt": _prompt_value(record.prompt), "completion": record.completion}
    if isinstance(record, PreferencePair):
        return {
            "prompt": _prompt_value(record.prompt),
            "chosen": record.chosen,
            "rejected": record.rejected,
            "agreement": record.agreement,
            "num_annotators": record.num_annotators,
            "chosen_ended": record.chosen_ended,
            "rejected_ended": record.rejected_ended,
        }
    if isinstance(record, LabelledText):
        row: dict[str, Any] = {"text": record.text, "label": record.label}
        return row | ({"prompt": _prompt_value(record.prompt)} if record.prompt else {})
    return {"prompt": _prompt_value(record)}


def _prompt_value(prompt: Prompt) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object per line and returns their number. A reader sees the old file or the whole new one.

    Raises DataError for a value that JSON cannot hold (a number that is not finite, half a surrogate pair).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for row in rows:
                try:
                    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
                except (TypeError, ValueError) as error:
                    raise DataError(f"Row {count + 1} for {path} cannot be written as JSON: {error}.") from error
                file.write(line + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return count
