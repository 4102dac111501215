"""Dumps: files of one JSON object per line that are too large to be held as a whole, read line by line."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from prefloop.data.row_files import Problems, Row, row_of_line
from prefloop.errors import DataError

SUFFIXES = (".jsonl", ".gz", ".zst")
"""A dump's name ends in one of these; what stands before .gz and .zst does not matter (RS_2013-01.zst)."""

ZST_WINDOW_BYTES = 1 << 31
"""Reddit dumps are packed with the largest window there is, and a reader has to allow it."""


def is_dump(path: Path) -> bool:
    """Whether the name is one of a dump."""
    return path.name.lower().endswith(SUFFIXES)


def dump_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """The rows of a dump in their order; a line that holds no JSON object goes to `problems`.

    Raises DataError for a file that cannot be read, is no dump by its name, or is truncated or corrupt; for .zst where
    the package `zstandard` is not installed.
    """
    if not is_dump(path):
        raise DataError(f"{path} is no dump; its name must end in {', '.join(SUFFIXES)}, one JSON object per line.")
    packing = path.suffix.lower().removeprefix(".")
    try:
        with ExitStack() as opened:
            lines = _unpacked(opened.enter_context(path.open("rb")), packing, path)
            for number, line in enumerate(opened.enter_context(io.BufferedReader(lines)), start=1):
                row = _row(f"{path}:{number}", line, problems)
                if row is not None:
                    yield row
    except EOFError as error:
        raise DataError(f"{path} is a truncated {packing} file; fetch it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a corrupt gz file ({error}); fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def dump_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes as they stand on the disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(place: str, line: bytes, problems: Problems) -> Row | None:
    try:
        text = line.decode("utf-8-sig").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        problems.add(place, f"invalid UTF-8 at byte {error.start} of the line")
        return None
    return row_of_line(place, text, problems) if text else None


def _unpacked(file: BinaryIO, packing: str, path: Path) -> Any:
    """The dump's own bytes as a raw stream."""
    if packing == "gz":
        return gzip.GzipFile(fileobj=file)
    return _ZstStream(file, path) if packing == "zst" else file


class _ZstStream(io.RawIOBase):
    """The unpacked bytes of a .zst file, which may hold several frames. A file that ends within a frame is an error."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise DataError(
                f"{path} is packed with zstd, which needs the package zstandard: install prefloop[reddit]."
            ) from error
        self._error: type[Exception] = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=ZST_WINDOW_BYTES).decompressobj
        self._file, self._path = file, path
        self._frame: Any = None
        self._left = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._left or self._file.read(io.DEFAULT_BUFFER_SIZE)
            if not packed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._ready = self._unpack(packed)
        num = min(len(buffer), len(self._ready))
        buffer[:num], self._ready = self._ready[:num], self._ready[num:]
        return num

    def _unpack(self, packed: bytes) -> bytes:
        """What the next bytes of the file hold; bytes after the end of a frame are left for the next one."""
        frame = self._frame or self._new_frame()
        try:
            unpacked: bytes = frame.decompress(packed)
        except self._error as error:
            raise DataError(f"{self._path} is a corrupt zst file ({error}); fetch it again.") from error
        self._left = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return unpacked
