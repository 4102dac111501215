"""Imports: every form by example, our own exports back again, real data, and bad rows named by file and line."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from label_examples import label, stored_pair
from prefloop.collection.agreement_figures import cohen_kappas
from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair
from prefloop.collection.label_statistics import label_statistics, regular_labels
from prefloop.data.label_exports import export_preferences
from prefloop.data.label_imports import ImportedLabels, read_label_file
from prefloop.errors import DataError, NothingUsableError, SettingsError
from prefloop.records import Comparison, Completion, Message

SHARED = Path(__file__).parents[3] / "shared" / "data"
PANDALM = SHARED / "pandalm_human" / "testset-v1.json.gz"
HH = SHARED / "hh_rlhf" / "helpful-base" / "test.jsonl.gz"


def jsonl(folder: Path, rows: Sequence[dict], name: str = "labels.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(result: ImportedLabels) -> list[tuple[str, str, str | None]]:
    """Labels as (pair, annotator, the text that was chosen or the choice without a side)."""
    texts = {
        pair.comparison.pair_id: {"left": pair.comparison.left.text, "right": pair.comparison.right.text}
        for pair in result.pairs
    }
    return [(one.pair_id, one.annotator, texts[one.pair_id].get(one.choice or "", one.choice)) for one in result.labels]


def test_pairs_without_labels(tmp_path):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    path = jsonl(
        tmp_path,
        [
            {"id": 7, "prompt": "one", "response_a": "A", "response_b": "B", "left_source": "model x", "margin": -0.5},
            {"prompt": messages, "response_a": "A", "response_b": "B", "gold_choice": "right", "right_ended": False},
        ],
    )
    result = read_label_file(path)
    assert (result.form, result.labels, result.rows_read, result.dropped) == ("pairs", [], 2, {})
    assert result.pairs[0] == StoredPair(
        Comparison("7", "one", Completion("A", source="model x"), Completion("B")), margin=-0.5
    )
    second = result.pairs[1]
    assert second.comparison.prompt == (Message("system", "Be kind."), Message("user", "Hello"))
    assert (second.gold_choice, second.comparison.right.ended) == ("right", False)
    assert second.comparison.pair_id.startswith("pair-")
    assert result.files[0]["rows"] == 2


@pytest.mark.parametrize(
    "names",
    [("left", "right"), ("response_a", "response_b"), ("completion_1", "completion_2"), ("response1", "response2"),
     ("text1", "text2"), ("answer_0", "answer_1")],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".json.gz"])
def test_names_of_the_two_answers_and_kinds_of_files(tmp_path, names, suffix):
    row = {"instruction": "Add", "input": "1, 2", names[0]: "three", names[1]: "four"}
    text = {
        ".jsonl": json.dumps(row),
        ".json": json.dumps([row]),
        ".csv": ",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()),
        ".json.gz": json.dumps([row]),
    }[suffix]
    path = tmp_path / f"pairs{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    (pair,) = read_label_file(path).pairs
    assert pair.comparison.prompt == (Message("user", "Add\n\n1, 2"),)
    assert (pair.comparison.left.text, pair.comparison.right.text) == ("three", "four")


def test_columns_can_be_mapped_and_kept(tmp_path):
    rows = [{"q": "one", "x": "A", "y": "B", "topic": "tea"}]
    columns = {"prompt": "q", "left": "x", "right": "y"}
    path = jsonl(tmp_path, rows)
    with pytest.raises(DataError, match=r"labels\.jsonl:1: unknown columns 'topic'"):
        read_label_file(path, columns=columns)
    assert read_label_file(path, columns=columns, other_columns="keep").pairs[0].comparison.details == {"topic": "tea"}
    assert read_label_file(path, columns=columns, other_columns="drop").pairs[0].comparison.details == {}
    with pytest.raises(DataError, match="fit no form"):
        read_label_file(path)
    with pytest.raises(DataError, match="no column 'z'"):
        read_label_file(path, columns={"prompt": "z"})


def test_preferences_in_every_form_that_trainers_take(tmp_path):
    user = {"role": "user", "content": "Hello"}
    good, bad = {"role": "assistant", "content": "Good day"}, {"role": "assistant", "content": "Go away"}
    path = jsonl(
        tmp_path,
        [
            {"id": "text", "prompt": "Hello", "chosen": "Good day", "rejected": "Go away", "score_chosen": 9},
            {"id": "turns", "prompt": [user], "chosen": [good], "rejected": [bad]},
            {"id": "whole", "prompt": "Hello", "chosen": [user, good], "rejected": [user, bad]},
        ],
    )
    result = read_label_file(path, annotator="Ana")
    assert result.form == "preference"
    assert said(result) == [(name, "Ana", "Good day") for name in ("text", "turns", "whole")]
    assert [pair.comparison.prompt for pair in result.pairs] == ["Hello", *[(Message("user", "Hello"),)] * 2]
    assert result.pairs[0].comparison.details == {"score_chosen": 9}
    implicit = jsonl(
        tmp_path,
        [{"chosen": [user, good], "rejected": [user, bad]}, {"chosen": "It is blue", "rejected": "It is black"}],
    )
    first, second = read_label_file(implicit).pairs
    assert first.comparison.prompt == (Message("user", "Hello"),)
    assert second.comparison.prompt == "It is"
    assert {second.comparison.left.text, second.comparison.right.text} == {" blue", " black"}


def test_the_chosen_answer_is_on_either_side(tmp_path):
    rows = [{"prompt": f"p{number}", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(400)]
    result = read_label_file(jsonl(tmp_path, rows))
    lefts = sum(one.choice == "left" for one in result.labels)
    assert 160 < lefts < 240
    assert all(text is not None and text.startswith("good") for _, _, text in said(result))
    # The order of rows, or which answer was chosen, does not move an answer to the other side.
    other = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[::-1]]
    again = read_label_file(jsonl(tmp_path, other))
    assert {one.comparison.pair_id: one for one in again.pairs} == {one.comparison.pair_id: one for one in result.pairs}


def test_whole_dialogues(tmp_path):
    start = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: What is tea?\n\nAssistant:"
    result = read_label_file(jsonl(tmp_path, [{"chosen": f"{start} A drink.", "rejected": f"{start} No idea."}]))
    assert result.form == "hh"
    (pair,) = result.pairs
    assert pair.comparison.prompt == (
        Message("user", "Hello"),
        Message("assistant", "Hi"),
        Message("user", "What is tea?"),
    )
    assert said(result)[0][1:] == ("imported", "A drink.")
    with pytest.raises(DataError, match=r":1: rejected is no dialogue"):
        read_label_file(jsonl(tmp_path, [{"chosen": f"{start} A drink.", "rejected": "No idea."}]), form="hh")


def test_one_column_per_annotator(tmp_path):
    rows = [
        {"idx": 0, "instruction": "Add", "response1": "x", "response2": "y", "annotator1": 1, "annotator2": 2},
        {"idx": 1, "instruction": "Add", "response1": "x", "response2": "z", "annotator1": 0, "annotator2": None},
    ]
    result = read_label_file(jsonl(tmp_path, rows))
    assert result.form == "annotators"
    assert said(result) == [("0", "annotator1", "x"), ("0", "annotator2", "y"), ("1", "annotator1", "tie")]
    csv = tmp_path / "labels.csv"
    csv.write_text("prompt,left,right,ana,ben\np,x,y,better left,same\n")
    mapped = read_label_file(csv, annotator_columns=["ana", "ben"], choices={"Better left": "left", "same": "both_bad"})
    assert [(one.annotator, one.choice) for one in mapped.labels] == [("ana", "left"), ("ben", "both_bad")]


def test_one_row_per_annotator_and_pair(tmp_path):
    pair = {"pair_id": "p", "prompt": "one", "left": "A", "right": "B"}
    rows = [
        {**pair, "annotator": "Ana", "choice": "Left", "strength": 3, "rationale": "shorter", "device": "phone",
         "opened_at": "2026-01-01T00:00:00Z", "submitted_at": "2026-01-01T00:00:09+00:00"},
        {**pair, "annotator": "Ben", "choice": "both_bad", "device": "desk"},
        {**pair, "annotator": "Cem", "choice": "skip", "device": None},
    ]  # fmt: skip
    result = read_label_file(jsonl(tmp_path, rows), other_columns="keep")
    assert result.form == "long"
    assert len(result.pairs) == 1
    first, second, third = result.labels
    assert (first.choice, first.displayed_choice, first.strength, first.rationale) == ("left", "left", 3, "shorter")
    assert first.submitted_at - first.opened_at == 9.0
    assert (first.details, second.details) == ({"device": "phone"}, {"device": "desk"})
    assert (second.choice, third.choice) == ("both_bad", "skip")
    assert len({one.submission_id for one in result.labels}) == 3
    assert [one.event_id for one in result.labels] == [1, 2, 3]
    # Times that are not known do not look like haste.
    figures = label_statistics(result.pairs, result.labels, seed=0, num_resamples=100)
    assert [one.median_seconds for one in figures.annotators] == [9.0, None, None]


def argilla_record(number: int, responses: dict[str, list[dict]]) -> dict:
    return {
        "id": f"record-{number}",
        "fields": {"prompt": f"question {number}", "response_a": f"a {number}", "response_b": f"b {number}"},
        "metadata": {"topic": "tea"},
        "suggestions": {"preference": {"value": "response_a", "score": None, "agent": "model"}},
        "responses": responses,
        "vectors": {},
        "_server_id": f"0000-{number}",
    }


def test_argilla_records(tmp_path):
    rank = [{"value": "response_b", "rank": 1}, {"value": "response_a", "rank": 2}]
    equal = [{"value": "response_a", "rank": 1}, {"value": "response_b", "rank": 1}]
    path = tmp_path / "records.json"
    path.write_text(
        json.dumps(
            [
                argilla_record(0, {"preference": [
                    {"value": ["response_b", "response_a"], "user_id": "u1"}, {"value": rank, "user_id": "u2"},
                    {"value": equal, "user_id": "u3"},
                ]}),
                argilla_record(1, {"preference": [
                    {"value": "response_a", "user_id": "u1"}, {"value": "tie", "user_id": "u2", "status": "submitted"},
                    {"value": "B", "user_id": "None"}, {"value": "response_a", "user_id": "u3", "status": "draft"},
                    {"value": None, "user_id": "u4", "status": "discarded"}, {"value": None, "user_id": "u5"},
                ]}),
                argilla_record(2, {}),
            ]
        )
    )  # fmt: skip
    result = read_label_file(path, annotator="unnamed")
    assert result.form == "argilla"
    assert said(result) == [
        ("record-0", "u1", "b 0"), ("record-0", "u2", "b 0"), ("record-0", "u3", "tie"),
        ("record-1", "u1", "a 1"), ("record-1", "u2", "tie"), ("record-1", "unnamed", "b 1"),
        ("record-1", "u4", "skip"),
    ]  # fmt: skip
    assert result.dropped_labels == {"draft": 1, "response without this question": 1}
    assert result.pairs[2].comparison == Comparison(
        "record-2", "question 2", Completion("a 2"), Completion("b 2"), {"topic": "tea"}
    )


def test_argilla_fields_by_other_names_and_several_questions(tmp_path):
    record = {
        "id": "r",
        "fields": {"instruction": "Add", "model-1": "x", "model-2": "y"},
        "responses": {
            "which": [{"value": ["model-2", "model-1"], "user_id": "u"}],
            "why": [{"value": "shorter", "user_id": "u"}],
        },
    }  # fmt: skip
    path = jsonl(tmp_path, [record])
    columns = {"left": "model-1", "right": "model-2"}
    with pytest.raises(DataError, match=r"several questions \(which, why\)"):
        read_label_file(path, columns=columns)
    assert said(read_label_file(path, columns=columns, question="which")) == [("r", "u", "y")]
    with pytest.raises(DataError, match="no columns hold the answers"):
        read_label_file(path, question="which")


def test_flat_argilla_records(tmp_path):
    row = {
        "id": "r", "status": "completed", "_server_id": "0", "prompt": "Add", "text1": "x", "text2": "y",
        "which.responses": ["text1", "text2", "text2"], "which.responses.users": ["u1", "u2", "u3"],
        "which.responses.status": ["submitted", "submitted", "draft"], "which.suggestion": "text1",
        "which.suggestion.score": 0.5, "which.suggestion.agent": None,
    }  # fmt: skip
    result = read_label_file(jsonl(tmp_path, [row]))
    assert (result.form, said(result)) == ("argilla", [("r", "u1", "x"), ("r", "u2", "y")])
    assert result.dropped_labels == {"draft": 1}
    with pytest.raises(DataError, match="3 responses of 2 users"):
        read_label_file(jsonl(tmp_path, [{**row, "which.responses.users": ["u1", "u2"]}]))


def label_studio_task(annotations: list[dict], **data) -> dict:
    return {
        "id": 3,
        "data": {"prompt": "Add", "text1": "x", "text2": "y", **data},
        "annotations": annotations,
        "predictions": [],
        "project": 1,
        "created_at": "2026-01-01T00:00:00Z",
    }


def annotation(selected: str | None, **rest) -> dict:
    results = [] if selected is None else [
        {"id": "abc", "from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": selected}}
    ]  # fmt: skip
    return {"id": 1, "completed_by": 5, "result": results, "was_cancelled": False, "ground_truth": False, **rest}


def test_label_studio_tasks(tmp_path):
    why = {"from_name": "why", "to_name": "text1", "type": "textarea", "value": {"text": ["shorter", "clearer"]}}
    first = annotation("left", created_at="2026-01-02T00:00:10.5Z", lead_time=4.5)
    first["result"].append(why)
    same = {"type": "choices", "from_name": "tie", "to_name": "text1", "value": {"choices": ["About the same"]}}
    path = tmp_path / "export.json"
    path.write_text(
        json.dumps(
            [
                label_studio_task(
                    [
                        first,
                        annotation("right", completed_by={"id": 6, "email": "ben@example.org"}, lead_time=2.0),
                        annotation(None, completed_by=7, was_cancelled=True),
                        {**annotation(None, completed_by=8), "result": [same]},
                        annotation("right", completed_by=9, ground_truth=True),
                    ]
                )
            ]
        )
    )
    choices = {"left": "left", "right": "right", "about the same": "tie"}
    result = read_label_file(path, choices=choices)  # pyright: ignore[reportArgumentType]
    assert result.form == "label_studio"
    assert said(result) == [("3", "5", "x"), ("3", "ben@example.org", "y"), ("3", "7", "skip"), ("3", "8", "tie")]
    assert result.pairs[0].gold_choice == "right"
    assert result.dropped_labels == {"ground truth, taken as the known answer": 1}
    assert result.labels[0].rationale == "shorter\nclearer"
    assert result.labels[0].submitted_at - result.labels[0].opened_at == 4.5
    assert (result.labels[1].submitted_at - result.labels[1].opened_at, result.labels[1].received_at) == (2.0, 2.0)
    with pytest.raises(DataError, match="0 choices"):
        read_label_file(jsonl(tmp_path, [label_studio_task([annotation(None)])]))
    with pytest.raises(DataError, match="selected is 'middle'"):
        read_label_file(jsonl(tmp_path, [label_studio_task([annotation("middle")])]))
    with pytest.raises(DataError, match="unknown columns 'topic'"):
        read_label_file(jsonl(tmp_path, [label_studio_task([annotation("left")], topic="tea")]))


def project() -> tuple[list[StoredPair], list[LabelEvent]]:
    pairs = [
        stored_pair("text", margin=0.25, chosen_by="margin"),
        StoredPair(
            Comparison(
                "turns",
                (Message("system", "Be brief \u2028 \U0001f600"), Message("user", "Hi")),
                Completion("a\n\nb", ended=False, source="model a"),
                Completion("c", source="model b"),
                {"sampling": {"temperature": 0.7, "seed": 3}, "tags": ["x"]},
            ),
            disagreement=0.125,
        ),
        stored_pair("gold", gold_choice="both_bad"),
        stored_pair("unlabelled"),
    ]
    labels = [
        label("text", "Ana", "left", strength=4, rationale="shorter \U0001f600", swapped=True, details={"page": 2}),
        label("text", "Ben", "skip"),
        label("turns", "Ana", "right", revision=3, chosen_by="margin", received_at=1_700_000_000.123456),
        label("turns", "Ben", "tie"),
        label("gold", "Ana", "both_bad", kind="gold"),
        label("text", "Ana", "right", kind="repeat", swapped=False),
    ]
    return pairs, [replace(one, event_id=number) for number, one in enumerate(labels, start=10)]


def export(folder: Path, pairs: list[StoredPair], labels: list[LabelEvent], **rest) -> Path:
    settings = ProjectSettings(name="garden")
    export_preferences(
        pairs, labels, folder, seed=0, settings=settings, num_resamples=100, prompts_as_messages=True, **rest
    )
    return folder


def test_our_own_export_comes_back_as_it_was(tmp_path):
    pairs, labels = project()
    folder = export(tmp_path / "out", pairs, labels, include_gold=True, with_names=True, with_rationales=True)
    result = read_label_file(folder)
    assert (result.form, result.rows_read) == ("export", 10)
    assert result.pairs == pairs
    assert result.labels == labels
    # Without asking: no gold pairs, no names, no rationales, and the rest as it was.
    bare = read_label_file(export(tmp_path / "bare", pairs, labels))
    assert bare.pairs == [pair for pair in pairs if pair.gold_choice is None]
    assert [replace(one, annotator="", rationale="") for one in bare.labels] == [
        replace(one, annotator="", rationale="") for one in labels if one.kind != "gold"
    ]


def test_the_preference_rows_of_an_export_can_be_read_alone(tmp_path):
    pairs, labels = project()
    folder = export(tmp_path / "out", pairs, labels, shares={"train": 1.0})
    result = read_label_file(folder / "train.jsonl")
    assert result.form == "preference"
    assert said(result) == [("text", "imported", "left text"), ("turns", "imported", "c")]
    assert result.pairs[0].comparison.details["num_annotators"] == 1
    turns = result.pairs[1].comparison
    assert {turns.left.text: turns.left.source, turns.right.text: turns.right.source} == {
        "a\n\nb": "model a",
        "c": "model b",
    }


def test_a_changed_export_is_refused(tmp_path):
    pairs, labels = project()
    folder = export(tmp_path / "out", pairs, labels)
    path = folder / "labels.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"choice": "left"', '"choice": "right"'), encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.jsonl is not the file that was exported"):
        read_label_file(folder)
    with pytest.raises(DataError, match="no export of labels"):
        read_label_file(tmp_path)
    (folder / "manifest.json").write_text('{"format": "prefloop labels", "version": 99, "files": {}}')
    with pytest.raises(DataError, match="version 99"):
        read_label_file(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="no manifest"):
        read_label_file(folder)


GOOD = {"pair_id": "p", "prompt": "one", "left": "A", "right": "B", "annotator": "Ana", "choice": "left"}
BAD = {
    "one-sided pair": ({**GOOD, "right": None}, "there is no answer in 'right'"),
    "half a pair": ({key: value for key, value in GOOD.items() if key != "left"}, "no column 'left'"),
    "empty answer": ({**GOOD, "left": " \n"}, "left is empty"),
    "no text": ({**GOOD, "left": 3}, "left is a number"),
    "equal answers": ({**GOOD, "left": "B ", "right": " B\n"}, "both answers are equal"),
    "empty prompt": ({**GOOD, "prompt": " "}, "empty prompt"),
    "no prompt": ({key: value for key, value in GOOD.items() if key != "prompt"}, "no prompt"),
    "unknown choice": ({**GOOD, "choice": "middle"}, r"choice is 'middle'; allowed: left, right, .*1 \(left\)"),
    "choice is true": ({**GOOD, "choice": True}, "choice is True"),
    "no choice": ({**GOOD, "choice": None}, "choice is None"),
    "no annotator": ({**GOOD, "annotator": ""}, "annotator has 0 characters"),
    "NUL in an answer": ({**GOOD, "left": "A\x00"}, "left holds a NUL character at position 1"),
    "NUL in a rationale": ({**GOOD, "rationale": "\x00"}, "rationale holds a NUL character"),
    "half a surrogate": ({**GOOD, "left": "\ud800"}, "half a surrogate"),
    "strength": ({**GOOD, "strength": 5}, "strength is 5"),
    "time": ({**GOOD, "opened_at": "yesterday"}, "opened_at is 'yesterday'"),
    "messages": ({**GOOD, "prompt": [{"role": "robot", "content": "x"}]}, "role 'robot'"),
    "other content": ({**GOOD, "left": "another"}, r"the id 'p' has other content at .*labels\.jsonl:1"),
    "sides exchanged": ({**GOOD, "left": "B", "right": "A"}, "with its sides exchanged"),
    "other choice": ({**GOOD, "choice": "tie"}, "'Ana' has two different labels on pair 'p'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, name):
    row, message = BAD[name]
    rows = [GOOD, row, {**GOOD, "pair_id": "q", "prompt": "two"}]
    path = jsonl(tmp_path, rows)
    with pytest.raises(DataError, match=rf"1 problem;[\s\S]*labels\.jsonl:2: .*{message}"):
        read_label_file(path)
    result = read_label_file(path, skip_bad=True)
    assert [one.pair_id for one in result.labels] == ["p", "q"]
    assert sum(result.dropped.values()) == 1
    assert (result.rows_read, len(result.pairs)) == (3, 2)


def test_which_columns_hold_the_answers_is_never_guessed(tmp_path):
    row = {"prompt": "one", "response1": "A", "response2": "B", "text1": "C", "text2": "D"}
    path = jsonl(tmp_path, [row])
    with pytest.raises(DataError, match="could be in response1 and response2; text1 and text2"):
        read_label_file(path)
    columns = {"left": "text1", "right": "text2"}
    (pair,) = read_label_file(path, columns=columns, other_columns="keep").pairs
    assert (pair.comparison.left.text, pair.comparison.details) == ("C", {"response1": "A", "response2": "B"})
    with pytest.raises(DataError, match=r"an answer in 'text1' and no column 'text2'"):
        read_label_file(jsonl(tmp_path, [{"prompt": "one", "text1": "C"}]))


def test_all_problems_are_said_up_to_twenty(tmp_path):
    path = jsonl(tmp_path, [GOOD, *[{**GOOD, "choice": "middle"}] * 30])
    with pytest.raises(DataError, match="30 problems") as raised:
        read_label_file(path)
    lines = str(raised.value).splitlines()
    assert len(lines) == 22
    assert lines[-1].strip() == "and 10 more"


def test_unknown_columns_are_said_once_and_never_skipped(tmp_path):
    path = jsonl(tmp_path, [{**GOOD, "pair_id": str(number), "mood": "sunny"} for number in range(30)])
    with pytest.raises(DataError, match=r"1 problem;[\s\S]*:1: unknown columns 'mood'; known here: "):
        read_label_file(path, skip_bad=True)


def test_what_is_said_twice_counts_once(tmp_path):
    result = read_label_file(jsonl(tmp_path, [GOOD, GOOD]))
    assert (len(result.pairs), len(result.labels)) == (1, 1)
    assert result.dropped_labels == {"the same label again": 1}
    pair = {"prompt": "one", "left": "A", "right": "B"}
    assert read_label_file(jsonl(tmp_path, [pair, pair])).dropped == {"the same pair again": 1}


def test_preferences_of_several_people_need_names(tmp_path):
    rows = [
        {"prompt": "one", "chosen": "A", "rejected": "B"},
        {"prompt": "one", "chosen": "B", "rejected": "A"},
    ]
    with pytest.raises(DataError, match=r":2: 'imported' has two different labels"):
        read_label_file(jsonl(tmp_path, rows))
    named = [{**row, "annotator": name} for row, name in zip(rows, ("Ana", "Ben"), strict=True)]
    result = read_label_file(jsonl(tmp_path, named))
    assert len(result.pairs) == 1
    assert [text for _, _, text in said(result)] == ["A", "B"]


def test_importing_twice_gives_the_same_submissions(tmp_path):
    path = jsonl(tmp_path, [GOOD])
    assert read_label_file(path).labels == read_label_file(path).labels


def test_files_that_cannot_be_used_are_errors(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_label_file(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no rows"):
        read_label_file(jsonl(tmp_path, []))
    (tmp_path / "labels.jsonl").write_text(json.dumps(GOOD) + "\n{")
    with pytest.raises(DataError, match=r"labels\.jsonl:2: not JSON"):
        read_label_file(tmp_path / "labels.jsonl", skip_bad=True)
    with pytest.raises(NothingUsableError, match="1 unknown choice"):
        read_label_file(jsonl(tmp_path, [{**GOOD, "choice": "middle"}]), skip_bad=True)
    with pytest.raises(SettingsError, match="form is 'xml'"):
        read_label_file(tmp_path, form="xml")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match="choices maps 'x' to 'up'"):
        read_label_file(tmp_path, choices={"x": "up"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match="other_columns"):
        read_label_file(tmp_path, other_columns="hide")  # pyright: ignore[reportArgumentType]


def test_answers_as_they_are(tmp_path):
    rows = [{**GOOD, "left": True, "right": ""}, {**GOOD, "pair_id": "q", "prompt": ""}]
    with pytest.raises(DataError, match="2 problems"):
        read_label_file(jsonl(tmp_path, rows))
    first, second = read_label_file(jsonl(tmp_path, rows), as_given=True).pairs
    assert (first.comparison.left.text, first.comparison.right.text) == ("True", "")
    assert second.comparison.prompt == ""
    with pytest.raises(DataError, match="equal"):
        read_label_file(jsonl(tmp_path, [{**GOOD, "left": "", "right": " "}]), as_given=True)


@pytest.mark.skipif(not PANDALM.is_file(), reason="PandaLM's human labels are not on this machine")
def test_the_kappas_of_pandalm_come_out_as_published():
    """0.85, 0.88 and 0.86, from all 999 pairs, of which some have an empty answer or one that became true."""
    everything = read_label_file(PANDALM, other_columns="keep", as_given=True)
    assert (everything.form, len(everything.pairs), len(everything.labels)) == ("annotators", 999, 2997)
    kappas = cohen_kappas(regular_labels(everything.labels), 0, num_resamples=100)
    assert [(one.first[-1] + one.second[-1], round(one.kappa.value or 0, 4)) for one in kappas] == [
        ("12", 0.8520), ("13", 0.8789), ("23", 0.8617),
    ]  # fmt: skip
    usable = read_label_file(PANDALM, other_columns="keep", skip_bad=True)
    assert usable.dropped == {"empty completion": 54, "answer is no text": 6, "empty prompt": 1}
    kappas = cohen_kappas(regular_labels(usable.labels), 0, num_resamples=100)
    assert [round(one.kappa.value or 0, 2) for one in kappas] == [0.85, 0.88, 0.86]
    assert usable.pairs[0].comparison.details == {"motivation_app": "Grammarly", "cmp_key": "bloom-7b_llama-7b"}


@pytest.mark.skipif(not HH.is_file(), reason="Anthropic's HH is not on this machine")
def test_the_real_dialogues_are_read_and_accounted_for():
    with pytest.raises(DataError, match="6 problems"):
        read_label_file(HH)
    result = read_label_file(HH, skip_bad=True)
    assert result.form == "hh"
    assert len(result.pairs) + sum(result.dropped.values()) == result.rows_read == 2354
    assert result.dropped == {"empty completion": 4, "chosen equals rejected": 2}
    lefts = sum(one.choice == "left" for one in result.labels)
    assert 0.46 < lefts / len(result.labels) < 0.54


def test_a_label_that_numbers_the_better_completion_is_a_choice(tmp_path: Path) -> None:
    both = {"completion_0": "A cherry.", "completion_1": "A shoe."}
    rows = [{"prompt": f"Name a red fruit ({better}).", **both, "label": better} for better in (0, 1)]
    found = read_label_file(jsonl(tmp_path, rows), annotator="Ada")
    assert [(one.annotator, one.choice) for one in found.labels] == [("Ada", "left"), ("Ada", "right")]
    assert [pair.comparison.left.text for pair in found.pairs] == ["A cherry.", "A cherry."]
    with pytest.raises(DataError, match="label is 2; it must be 0 or 1"):
        read_label_file(jsonl(tmp_path, [rows[0] | {"label": 2}]))


def test_comparisons_of_ours_are_pairs_and_keep_what_is_known_of_them(tmp_path: Path) -> None:
    left = {"text": "A cherry.", "ended": False, "source": "sft"}
    row = {"pair_id": "one", "prompt": "Name a red fruit.", "left": left, "right": {"text": "A shoe."}}
    details = {"left_votes": 3, "right_votes": 1}
    (pair,) = read_label_file(jsonl(tmp_path, [row | {"details": details}])).pairs
    assert pair.comparison.details == details
    assert pair.comparison.left == Completion("A cherry.", ended=False, source="sft")
    assert pair.comparison.right == Completion("A shoe.")
    with pytest.raises(DataError, match="left is an object of word; it must hold text, ended, source"):
        read_label_file(jsonl(tmp_path, [row | {"left": {"word": "A cherry."}}]))
    with pytest.raises(DataError, match="details must be an object"):
        read_label_file(jsonl(tmp_path, [row | {"details": "many"}]))
