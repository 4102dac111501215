import gzip
import json
import random
import stat

import datasets
import pytest

from prefloop.data.sources import ReadResult, read_records, record_to_row, write_jsonl
from prefloop.errors import DataError, SettingsError
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, TextExample

CHAT = (Message("system", "s"), Message("user", "hello\n\x85\u2028é🙂"))
RECORDS = {
    "text": [TextExample("a"), TextExample(" b\r\n")],
    "demonstrations": [Demonstration("p", " c"), Demonstration(CHAT, "c")],
    "pairs": [
        PreferencePair("p", "a", "b"),
        PreferencePair(CHAT, "a", "b", agreement=2 / 3, num_annotators=3, rejected_ended=False),
    ],
    "labelled": [LabelledText("a", 1, CHAT), LabelledText("b", 0, "p"), LabelledText("b", 1)],
    "prompts": ["p", CHAT],
}


def balanced(result):
    return result.rows_read == len(result.records) + sum(result.dropped.values())


@pytest.mark.parametrize("kind", RECORDS)
def test_records_written_and_read_back_are_the_same(tmp_path, kind):
    path = tmp_path / "new" / "a.jsonl"
    assert write_jsonl(path, map(record_to_row, RECORDS[kind])) == len(RECORDS[kind])
    result = read_records(path, kind=kind)
    assert result.records == RECORDS[kind]
    assert result.places == [f"{path}:{number}" for number in range(1, len(RECORDS[kind]) + 1)]
    assert (result.dropped, result.rows_read, result.kind) == ({}, len(RECORDS[kind]), kind)


def test_every_form_of_file_gives_the_same_records(tmp_path):
    rows = [
        {"label": 1, "sentence": "good, é"},
        {"label": 0, "sentence": 'a "bad"\none'},
        {"label": -1, "sentence": "?"},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    table = 'label,sentence\n1,"good, é"\n0,"a ""bad""\none"\n-1,?\n'
    files = {
        "a.jsonl": lines.encode(),
        "a.jsonl.gz": gzip.compress(lines.encode()),
        "a.json": json.dumps(rows).encode(),
        "a.json.gz": gzip.compress(json.dumps(rows, indent=1).encode()),
        "a.csv": table.encode(),
        "a.csv.gz": gzip.compress(table.encode()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for name in [*files, "a.parquet"]:
        result = read_records(tmp_path / name, kind="labelled")
        assert result.records == [LabelledText("good, é", 1), LabelledText('a "bad"\none', 0)], name
        assert result.dropped == {"label is neither 0 nor 1": 1}
        assert result.files[0]["rows"] == result.rows_read == 3


def test_every_dropped_row_is_counted(tmp_path):
    pairs = [("p", "a", "b"), ("p", "a", "b"), ("p", "a", " a "), ("", "a", "b"), ("p", "", "b"), ("p", "b", "a")]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs])
    result = read_records(path, kind="pairs")
    assert result.records == [PreferencePair("p", "a", "b"), PreferencePair("p", "b", "a")]
    assert result.places == [f"{path}:1", f"{path}:6"]
    assert result.dropped == {
        "duplicate row": 1,
        "chosen equals rejected": 1,
        "empty prompt": 1,
        "empty completion": 1,
    }
    assert balanced(result)


def test_random_rows_are_records_or_counted_or_an_error(tmp_path):
    rng = random.Random(0)
    outcomes = set()
    for _ in range(60):
        rows = [
            {
                "prompt": rng.choice(["p", "q", " "]),
                "chosen": rng.choice("ab "),
                "rejected": rng.choice(["a", "b", "b", 1]),
            }
            for _ in range(rng.randrange(1, 6))
        ]
        path = tmp_path / "a.jsonl"
        write_jsonl(path, rows)
        try:
            result = read_records(path, kind="pairs")
        except DataError as error:
            outcomes.add("malformed" if "problem" in str(error) else "nothing left")
            continue
        outcomes.add("read")
        naive = {
            (row["prompt"], row["chosen"], row["rejected"])
            for row in rows
            if row["prompt"].strip() and row["chosen"].strip() and row["chosen"] != row["rejected"]
        }
        assert {(pair.prompt, pair.chosen, pair.rejected) for pair in result.records} == naive
        assert len(result.records) == len(naive)
        assert balanced(result)
        assert result.rows_read == len(rows)
    assert outcomes == {"malformed", "nothing left", "read"}


def test_opposite_labels_of_one_text_are_both_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"text": "a", "label": 0}, {"text": "a", "label": 1}])
    assert len(read_records(path, kind="labelled").records) == 2


def test_problems_of_file_and_row_come_in_one_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 7}\nnot json\n{"other": 1}\n')
    with pytest.raises(DataError) as error:
        read_records(path, kind="text")
    message = str(error.value)
    assert "3 problems" in message
    assert f"{path}:2: text is a number" in message
    assert f"{path}:3: not JSON" in message
    assert f"{path}:4: the column 'text' is missing (found: other)" in message


def test_a_limit_reads_the_first_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"text": text} for text in ["", "a", "b", "c"]])
    result = read_records(path, kind="text", limit=3)
    assert (result.records, result.rows_read, result.dropped) == (
        [TextExample("a"), TextExample("b")],
        3,
        {"empty text": 1},
    )
    assert result.files[0]["rows"] == 4


@pytest.mark.parametrize(
    ("text", "message"), [("", "holds no rows"), ('{"text": " "}\n' * 2, r"all 2 .*\(2 empty text\)")]
)
def test_no_row_left_is_an_error(tmp_path, text, message):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_records(path, kind="text")


def test_a_lost_row_cannot_pass():
    with pytest.raises(AssertionError):
        ReadResult("text", [TextExample("a")], ["a:1"], 3, {"empty text": 1}, [])


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="text, demonstrations, pairs, labelled, prompts"):
        read_records(tmp_path, kind="preferences")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 1"):
        read_records(tmp_path, kind="text", limit=0)


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("train.jsonl", "dev.jsonl", "test-00000-of-00002.jsonl", "test-00001-of-00002.jsonl"):
        write_jsonl(tmp_path / name, [{"text": name}])
    (tmp_path / "README.md").write_text("no data")
    return tmp_path


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, ["train.jsonl"]),
        ("train", ["train.jsonl"]),
        ("dev", ["dev.jsonl"]),
        ("validation", ["dev.jsonl"]),
        ("test", ["test-00000-of-00002.jsonl", "test-00001-of-00002.jsonl"]),
    ],
)
def test_a_folder_holds_splits(folder, split, expected):
    result = read_records(folder, kind="text", split=split)
    assert [record.text for record in result.records] == expected
    assert [file["path"] for file in result.files] == [str(folder / name) for name in expected]
    assert balanced(result)


def test_a_split_that_is_not_there_is_named(folder):
    with pytest.raises(DataError, match=r"no file for the split extra; it holds dev\.jsonl, "):
        read_records(folder, kind="text", split="extra")
    with pytest.raises(DataError, match=r"split=test was asked of the single file"):
        read_records(folder / "train.jsonl", kind="text", split="test")
    write_jsonl(folder / "validation.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"several files for the split validation \(dev\.jsonl, validation\.jsonl\)"):
        read_records(folder, kind="text", split="validation")


def test_the_only_file_of_a_folder_needs_no_split(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a"}])
    assert read_records(tmp_path, kind="text").records == [TextExample("a")]
    with pytest.raises(DataError, match="no file for the split train"):
        read_records(tmp_path, kind="text", split="train")


# --- the Hub --------------------------------------------------------------------------------------------------------


def test_a_hub_name_is_loaded(monkeypatch):
    asked = []

    def load(name, *, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"sentence": "a", "label": 1}, {"sentence": "b", "label": -1}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    result = read_records("owner/name", kind="labelled")
    again = read_records("owner/name", kind="labelled", split="test")
    assert asked == [("owner/name", "train"), ("owner/name", "test")]
    assert result.records == [LabelledText("a", 1)]
    assert balanced(result)
    assert result.files[0]["path"] == "owner/name[train]"
    assert result.files[0]["sha256"] == again.files[0]["sha256"]


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    def load(name, *, split):
        raise ConnectionError("Couldn't reach the Hub.\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError) as error:
        read_records("owner/name", kind="text")
    assert str(error.value) == (
        "The Hub data set 'owner/name' (split train) could not be loaded: Couldn't reach the Hub. A local file or "
        "folder can be given instead with data=PATH."
    )


@pytest.mark.parametrize("source", ["gone/train.jsonl", "./gone", "/gone/a", "a/b/c", "gone.csv.gz"])
def test_a_path_that_is_not_there_is_no_hub_name(source):
    with pytest.raises(DataError, match="There is no file or folder"):
        read_records(source, kind="text")


# --- writing --------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"text": "old"}])
    for row in ({"n": float("nan")}, {"text": "\ud800"}, {"text": object()}):
        with pytest.raises(DataError, match=r"Row 2 for .* cannot be written"):
            write_jsonl(path, [{"text": "new"}, row])
    assert path.read_text() == '{"text": "old"}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["a.jsonl"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
