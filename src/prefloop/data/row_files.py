"""Rows from files, strictly: what cannot be read exactly is named with its file and line, and nothing is guessed.

A byte-order mark, Windows line ends, blank lines and a missing last newline change nothing.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """A row as it stands in the file. `typed` is false where every value is text (CSV). `place` is file:line."""

    place: str
    values: dict[str, Any]
    typed: bool = True


class Problems:
    """Collects what is wrong with a file, so that one error names up to 20 places at once."""

    SHOWN = 20

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, place: str, what: str) -> None:
        self.found.append(f"{place}: {what}")

    def raise_any(self) -> None:
        """Raises DataError if there was a problem."""
        if not self.found:
            return
        count = len(self.found)
        lines = self.found[: self.SHOWN] + ([f"and {count - self.SHOWN} more"] if count > self.SHOWN else [])
        noun = "1 problem" if count == 1 else f"{count} problems"
        raise DataError(f"The data has {noun}; correct the rows and read it again.\n  " + "\n  ".join(lines))


def data_suffix(path: Path) -> str | None:
    """The suffix that says how the file is read, or None for a file that is not data."""
    name = path.name.lower()
    inner = Path(name.removesuffix(".gz")).suffix
    return inner if inner in SUFFIXES and (inner != ".parquet" or not name.endswith(".gz")) else None


def read_file(path: Path, problems: Problems) -> tuple[list[Row], str]:
    """The rows of a file and the SHA-256 of its bytes; rows that are not rows go to `problems`.

    Raises DataError where the file cannot be read at all.
    """
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(f"{path} is no data file; it must end in {', '.join(SUFFIXES)} (each but .parquet also .gz).")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if suffix == ".parquet":
        return list(_parquet_rows(path, data)), sha256
    text = _decoded(path, _unzipped(path, data), problems)
    reader = {".jsonl": _jsonl_rows, ".json": _array_rows, ".csv": _csv_rows}[suffix]
    return list(reader(path, text, problems)), sha256


def _unzipped(path: Path, data: bytes) -> bytes:
    if not path.name.lower().endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise DataError(f"{path} is a truncated gzip file; fetch or write it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a corrupt gzip file ({error}); fetch or write it again.") from error


def _decoded(path: Path, data: bytes, problems: Problems) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in data[:2]:
        raise DataError(f"{path} is UTF-16 or UTF-32 text; save it as UTF-8.")
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode()
    except UnicodeDecodeError:
        offset = len(data) - len(body)
        for number, line in enumerate(body.split(b"\n"), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                problems.add(f"{path}:{number}", f"invalid UTF-8 at byte offset {offset + error.start} of the file")
            offset += len(line) + 1
        problems.raise_any()
        raise


# --- JSON -----------------------------------------------------------------------------------------------------------


def _object_without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} appears twice in one object")
        values[key] = value
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is not finite")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_twins, parse_float=_finite, parse_constant=_finite)


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON (column {error.colno}: {error.msg})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _jsonl_rows(path: Path, text: str, problems: Problems) -> Iterator[Row]:
    # Only a line feed ends a line: a JSON string may hold the other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(" \t\r")
        if not line:
            continue
        place = f"{path}:{number}"
        if line.startswith("["):
            problems.add(place, "a JSON array in a .jsonl file; write one object per line, or name the file .json")
            return
        row = row_of_line(place, line, problems)
        if row is not None:
            yield row


def row_of_line(place: str, line: str, problems: Problems) -> Row | None:
    """The row that a line of JSON holds; None for a line that holds none, which goes to `problems`."""
    try:
        value = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        problems.add(place, _said(error))
        return None
    if not isinstance(value, dict):
        problems.add(place, f"{json_type(value)}; each line must be a JSON object")
        return None
    return Row(place, value)


def _array_rows(path: Path, text: str, problems: Problems) -> Iterator[Row]:
    """Decodes the array item by item, because that gives each row its line."""

    def skip_space(place: int) -> int:
        while place < len(text) and text[place] in " \t\r\n":
            place += 1
        return place

    place = skip_space(0)
    if text[place : place + 1] != "[":
        problems.add(f"{path}:1", "a .json file must hold one array of objects; for one object per line use .jsonl")
        return
    place = skip_space(place + 1)
    line, counted = 1, 0
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        where = f"{path}:{line}"
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            problems.add(f"{path}:{at}", _said(error))
            return
        if isinstance(value, dict):
            yield Row(where, value)
        else:
            problems.add(where, f"{json_type(value)}; each item must be a JSON object")
        place = skip_space(place)
        if text[place : place + 1] == ",":
            place = skip_space(place + 1)
        elif text[place : place + 1] != "]":
            problems.add(where, "after this row a comma or the closing bracket is missing; the file may be truncated")
            return
    if skip_space(place + 1) != len(text):
        problems.add(f"{path}:{text.count(chr(10), 0, place) + 1}", "text follows the end of the array")


def json_type(value: object) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


# --- tables ---------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, text: str, problems: Problems) -> Iterator[Row]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] | None = None
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.add(place, f"not CSV ({error})")
                return
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) != len(header):
                    raise DataError(f"{place}: a column appears twice in the header ({', '.join(header)}).")
            elif len(cells) != len(header):
                problems.add(place, f"{len(cells)} cells; the header has {len(header)} columns")
            else:
                yield Row(place, dict(zip(header, cells, strict=True)), typed=False)
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path, data: bytes) -> Iterator[Row]:
    # Arrow is loaded for the files that need it only.
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable parquet file: {error}.") from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{path}: row {number}", values)
