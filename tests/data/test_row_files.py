import gzip
import hashlib

import pyarrow
import pyarrow.parquet
import pytest

from prefloop.data.row_files import Problems, data_suffix, read_file
from prefloop.errors import DataError

GOOD = '{"text": "one"}\n{"text": "two"}\n'


def rows_of(path):
    problems = Problems()
    rows, _ = read_file(path, problems)
    problems.raise_any()
    return [(row.place.removeprefix(str(path)), row.values) for row in rows]


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- accepted, with the same result -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        GOOD.rstrip("\n"),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD + "\n  \n",
        '  {"text" :"one"}\t\n{"text":"two"}',
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_byte_order_marks_line_ends_and_blank_lines_change_nothing(tmp_path, data, zipped):
    raw = gzip.compress(data.encode()) if zipped else data.encode()
    path = write(tmp_path, "a.jsonl.gz" if zipped else "a.jsonl", raw)
    assert rows_of(path) == [(":1", {"text": "one"}), (":2", {"text": "two"})]


@pytest.mark.parametrize("data", ["text,n\none,1\ntwo,2\n", "\ufefftext,n\r\none,1\r\n\r\ntwo,2"])
def test_csv_rows_are_text(tmp_path, data):
    rows = rows_of(write(tmp_path, "a.csv", data))
    assert [values for _, values in rows] == [{"text": "one", "n": "1"}, {"text": "two", "n": "2"}]


def test_a_csv_row_is_named_by_its_first_line(tmp_path):
    rows = rows_of(write(tmp_path, "a.csv", 'text,n\n"a\nb",1\nc,2\n'))
    assert rows == [(":2", {"text": "a\nb", "n": "1"}), (":4", {"text": "c", "n": "2"})]


def test_a_csv_cell_may_be_long(tmp_path):
    assert len(rows_of(write(tmp_path, "a.csv", "text\n" + "x" * 200_000))[0][1]["text"]) == 200_000


def test_an_array_gives_each_row_its_line(tmp_path):
    data = '\ufeff[\r\n  {"text": "one"},\n\n {"text":\n "two"} ,{"text": "three"}\n]\n'
    assert rows_of(write(tmp_path, "a.json", data)) == [
        (":2", {"text": "one"}),
        (":4", {"text": "two"}),
        (":5", {"text": "three"}),
    ]
    assert rows_of(write(tmp_path, "b.json", "[]")) == []


def test_parquet_rows_keep_their_types(tmp_path):
    values = [{"text": "one", "messages": [{"role": "user", "content": "x"}]}, {"text": "two", "messages": []}]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    assert rows_of(path) == [(": row 1", values[0]), (": row 2", values[1])]


def test_the_hash_is_that_of_the_file(tmp_path):
    path = write(tmp_path, "a.jsonl", GOOD)
    assert read_file(path, Problems())[1] == hashlib.sha256(GOOD.encode()).hexdigest()


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    assert rows_of(write(tmp_path, "a.jsonl", '{"text": "a\u2028b\x85c"}')) == [(":1", {"text": "a\u2028b\x85c"})]


# --- refused, by file and line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", GOOD + '{"text": }', r"a\.jsonl:3: not JSON \(column 10: "),
        ("a.jsonl", GOOD + '"three"', r"a\.jsonl:3: a string; each line must be a JSON object"),
        ("a.jsonl", GOOD + "null", r"a\.jsonl:3: null; each line"),
        ("a.jsonl", '\n{"a": NaN}', r"a\.jsonl:2: the number NaN is not finite"),
        ("a.jsonl", '{"a": -Infinity}', r"a\.jsonl:1: the number -Infinity is not finite"),
        ("a.jsonl", '{"a": 1e999}', r"a\.jsonl:1: the number 1e999 is not finite"),
        ("a.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}', r"a\.jsonl:1: the key 'c' appears twice"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, r"a\.jsonl:1: nested too deeply"),
        ("a.jsonl", '[{"text": "one"},\n{"text": "two"}]', r"a\.jsonl:1: a JSON array in a \.jsonl file"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"a\.jsonl:2: invalid UTF-8 at byte offset 16 "),
        ("a.jsonl", b"\xef\xbb\xbf{}\n\xc3(", r"a\.jsonl:2: invalid UTF-8 at byte offset 6 "),
        ("a.jsonl", GOOD.encode("utf-16"), "is UTF-16 or UTF-32 text; save it as UTF-8"),
        ("a.jsonl", GOOD.encode("utf-16-le"), "is UTF-16 or UTF-32 text"),
        ("a.jsonl", GOOD.encode("utf-32"), "is UTF-16 or UTF-32 text"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode() * 500)[:-12], "truncated gzip"),
        ("a.jsonl.gz", GOOD.encode(), "corrupt gzip"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode())[:-8] + bytes(8), "corrupt gzip"),
        ("a.json", '{"text": "one"}', r"a\.json:1: a \.json file must hold one array"),
        ("a.json", '[{"a": 1},\n{"a": 2}', r"a\.json:2: after this row a comma or the closing bracket is missing"),
        ("a.json", '[{"a": 1},\n', r"a\.json:2: not JSON"),
        ("a.json", '[{"a": 1},\n7]', r"a\.json:2: a number; each item"),
        ("a.json", '[{"a": 1}]\n[]', r"a\.json:1: text follows the end"),
        ("a.json", '[{"a": 1,\n "a": 2}]', r"a\.json:1: the key 'a' appears twice"),
        ("a.csv", "a,b\n1,2\n1\n", r"a\.csv:3: 1 cells; the header has 2 columns"),
        ("a.csv", 'a,b\n1,"2', r"a\.csv:2: not CSV"),
        ("a.csv", "a,a\n1,2", r"a\.csv:1: a column appears twice"),
        ("a.parquet", b"PAR1", "no readable parquet file"),
        ("a.txt", "text", r"no data file; it must end in \.jsonl"),
        ("a.parquet.gz", b"", "no data file"),
    ],
)
def test_what_cannot_be_read_exactly_is_named(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        rows_of(write(tmp_path, name, data))


def test_a_truncated_file_is_never_a_short_read(tmp_path):
    whole = gzip.compress((GOOD * 200).encode())
    for cut in range(1, len(whole)):
        with pytest.raises(DataError, match="gzip"):
            rows_of(write(tmp_path, "a.jsonl.gz", whole[:cut]))


def test_at_most_twenty_problems_are_listed_and_all_are_counted(tmp_path):
    path = write(tmp_path, "a.jsonl", "7\n" * 23)
    with pytest.raises(DataError) as error:
        rows_of(path)
    message = str(error.value)
    assert "23 problems" in message
    assert f"{path}:20:" in message
    assert f"{path}:21:" not in message
    assert message.endswith("and 3 more")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        rows_of(tmp_path / "gone.jsonl")


def test_suffixes():
    from pathlib import Path

    names = ["A.JSONL.GZ", "a.csv", "a.parquet", "a.parquet.gz", "a.gz", "README.md", "json"]
    assert [data_suffix(Path(name)) for name in names] == [".jsonl", ".csv", ".parquet", None, None, None, None]
