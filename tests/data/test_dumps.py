"""Dumps: three packings, the same rows; what is broken is named."""

import builtins
import hashlib
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dump_files import packed, write_dump
from prefloop.data.dumps import dump_rows, dump_sha256, is_dump
from prefloop.data.row_files import Problems
from prefloop.errors import DataError

ROWS = [{"id": str(number), "text": "é\u2028" * number} for number in range(2000)]


def read(path: Path) -> list[dict[str, Any]]:
    problems = Problems()
    rows = list(dump_rows(path, problems))
    problems.raise_any()
    return [row.values for row in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "RS_2013-01.gz", "a.jsonl.zst", "RC_2013-01.ZST"])
def test_every_packing_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(ROWS, path.suffix.lower()))
    assert read(path) == ROWS
    assert next(dump_rows(path, Problems())).place == f"{path}:1"


def test_a_zst_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(packed(ROWS[:900], ".zst") + packed(ROWS[900:], ".zst"))
    assert read(path) == ROWS


def test_a_frame_of_the_largest_window_is_read(tmp_path: Path) -> None:
    """Reddit's dumps are packed so, and a reader that does not ask for it refuses them."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, write_content_size=0)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    path = tmp_path / "a.zst"
    path.write_bytes(packer.compress(packed(ROWS, ".jsonl")) + packer.flush())
    with pytest.raises(zstandard.ZstdError, match="memory"):
        zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    assert read(path) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_file_is_an_error_and_no_shorter_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed(ROWS, suffix)[:-10])
    with pytest.raises(DataError, match="truncated"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_corrupt_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"these are no packed bytes")
    with pytest.raises(DataError, match=rf"a\{suffix} is a corrupt"):
        read(path)


def test_bad_lines_are_collected_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\n{"id": 2\n[3]\n{"text": "\xff"}\n{"id": 4}')
    problems = Problems()
    assert [row.values for row in dump_rows(path, problems)] == [{"id": 1}, {"id": 4}]
    assert [one.split(": ")[0] for one in problems.found] == [f"{path}:{number}" for number in (3, 4, 5)]


def test_a_name_that_is_no_dumps_is_refused(tmp_path: Path) -> None:
    assert not is_dump(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"must end in .jsonl, .gz, .zst"):
        next(dump_rows(tmp_path / "a.csv", Problems()))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        next(dump_rows(tmp_path / "a.jsonl", Problems()))


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dump(tmp_path / "a.zst", ROWS[:1])
    imported = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "zstandard":
            raise ModuleNotFoundError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"install prefloop\[reddit\]"):
        next(dump_rows(path, Problems()))


def test_the_hash_is_of_the_bytes_on_the_disk(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "a.zst", ROWS[:3])
    assert dump_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
