"""Exports: what is in the rows, what is left out and counted, what readers make of it, and that folders are safe."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import yaml

from label_examples import label, labelled, stored_pair
from prefloop.collection.aggregation import TIED, UNLABELLED, aggregate
from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair
from prefloop.collection.label_statistics import regular_labels
from prefloop.data.label_exports import GOLD_PAIR, ExportReport, export_preferences, prompt_id, pseudonyms
from prefloop.data.sources import read_records
from prefloop.errors import DataError, NothingUsableError, SettingsError
from prefloop.records import Comparison, Completion, Message

SETTINGS = ProjectSettings(name="garden", guidelines="Choose the <b>better</b> one.\n```\nno | matter\n```")


def export(pairs: list[StoredPair], labels: list[LabelEvent], folder: Path, **rest) -> ExportReport:
    return export_preferences(pairs, labels, folder, **{"seed": 0, "settings": SETTINGS, "num_resamples": 100, **rest})


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def conversations(num: int) -> tuple[list[StoredPair], list[LabelEvent]]:
    pairs = [
        StoredPair(
            Comparison(
                f"pair-{number}",
                (Message("system", "Be brief."), Message("user", f"question {number // 2}")),
                Completion(f"good {number}", source="model a"),
                Completion(f"bad {number}", ended=False, source="model b"),
                {"seed": number},
            ),
            margin=0.5,
            chosen_by="margin" if number % 2 else "random",
        )
        for number in range(num)
    ]
    labels = [
        label(pair.comparison.pair_id, name, "left" if number % 3 or name == "a" else "right", strength=1 + number % 4)
        for number, pair in enumerate(pairs)
        for name in "abc"
    ]
    return pairs, labels


def test_a_row_by_hand(tmp_path):
    pairs, labels = conversations(4)
    labels = [replace(one, strength={"a": 4, "b": 1, "c": None}[one.annotator]) for one in labels]
    export(pairs, labels, tmp_path / "out", shares={"train": 1.0})
    row = rows_of(tmp_path / "out" / "train.jsonl")[3]
    assert row == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 1"}],
        "chosen": [{"role": "assistant", "content": "bad 3"}],
        "rejected": [{"role": "assistant", "content": "good 3"}],
        "agreement": pytest.approx(2 / 3),
        "num_annotators": 3,
        "strength": 2.5,
        "pair_id": "pair-3",
        "prompt_id": prompt_id(pairs[3].comparison.prompt),
        "chosen_source": "model b",
        "rejected_source": "model a",
        "chosen_ended": False,
        "rejected_ended": True,
        "chosen_by": "margin",
    }
    assert prompt_id(pairs[2].comparison.prompt) == prompt_id(pairs[3].comparison.prompt)
    assert prompt_id(pairs[1].comparison.prompt) != prompt_id(pairs[3].comparison.prompt)


@pytest.mark.parametrize("as_messages", [False, True])
def test_our_reader_gives_the_records_of_the_aggregation(tmp_path, as_messages):
    pairs, labels = labelled(*["LLR", "RRL", "LTT", "TT.", "SB.", "LR.", "..."] * 30)
    pairs = [
        replace(pair, comparison=replace(pair.comparison, left=Completion(f"answer to {pair.comparison.pair_id}")))
        for pair in pairs
    ]
    report = export(pairs, labels, tmp_path / "out", prompts_as_messages=as_messages)
    expected = aggregate([pair.comparison for pair in pairs], regular_labels(labels)).pairs
    if as_messages:
        expected = [replace(one, prompt=(Message("user", str(one.prompt)),)) for one in expected]
    read = [
        record
        for part in ("train", "validation", "test")
        for record in read_records(tmp_path / "out", kind="pairs", split=part).records
    ]
    assert Counter(read) == Counter(expected)
    assert report.num_preferences == len(expected) == 90
    assert report.dropped == {TIED: 90, UNLABELLED: 30}
    assert report.num_preferences + sum(report.dropped.values()) == report.num_pairs == 210


@pytest.mark.parametrize("with_messages", [False, True])
def test_the_datasets_library_reads_the_folder_as_trainers_want_it(tmp_path, with_messages):
    """Preference trainers take text columns, or the conversational form: lists of messages in all three columns."""
    pairs, labels = conversations(60)
    if not with_messages:
        pairs = [
            replace(one, comparison=replace(one.comparison, prompt=f"p{number // 2}"))
            for number, one in enumerate(pairs)
        ]
    # One part without any strength: its column must still have the type of the others.
    export(pairs, labels, tmp_path / "out", shares={"train": 0.6, "test": 0.4})
    rows = rows_of(tmp_path / "out" / "test.jsonl")
    in_test = {row["pair_id"] for row in rows}
    labels = [replace(one, strength=None) if one.pair_id in in_test else one for one in labels]
    export(pairs, labels, tmp_path / "out", shares={"train": 0.6, "test": 0.4})
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    assert loaded["train"].features == loaded["test"].features
    assert loaded["test"].to_list() == rows_of(tmp_path / "out" / "test.jsonl")
    assert loaded["train"].to_list() == rows_of(tmp_path / "out" / "train.jsonl")
    assert {type(loaded["train"][0][name]) for name in ("prompt", "chosen", "rejected")} == {
        list if with_messages else str
    }


def test_a_prompt_stands_in_one_part_only(tmp_path):
    pairs, labels = conversations(200)
    export(pairs, labels, tmp_path / "out", shares={"train": 0.5, "validation": 0.25, "test": 0.25})
    parts = [
        {row["prompt_id"] for row in rows_of(tmp_path / "out" / f"{name}.jsonl")}
        for name in ("train", "validation", "test")
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100


def test_gold_pairs_are_left_out_unless_asked_and_repeats_never_count(tmp_path):
    pairs, labels = labelled("LL", "RR")
    pairs.append(stored_pair("gold", gold_choice="right"))
    labels += [
        label("gold", "a", "right", kind="gold"),
        label("pair-0", "a", "right", kind="repeat", strength=4),
        label("pair-0", "b", "right", kind="repeat"),
    ]
    report = export(pairs, labels, tmp_path / "out", shares={"train": 1.0})
    assert report.dropped == {GOLD_PAIR: 1}
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert [(row["pair_id"], row["agreement"], row["num_annotators"], row["strength"]) for row in rows] == [
        ("pair-0", 1.0, 2, None), ("pair-1", 1.0, 2, None),
    ]  # fmt: skip
    assert (rows[0]["chosen"], rows[1]["chosen"]) == ("left text", "right")
    assert "gold" not in {
        row["pair_id"] for name in ("pairs", "labels") for row in rows_of(tmp_path / "out" / f"{name}.jsonl")
    }
    # The card still says how well people did on them.
    assert report.statistics.annotators[0].gold.num_trials + report.statistics.annotators[1].gold.num_trials == 1

    with_gold = export(pairs, labels, tmp_path / "gold", shares={"train": 1.0}, include_gold=True)
    assert (with_gold.num_preferences, with_gold.dropped) == (3, {})
    assert len(rows_of(tmp_path / "gold" / "labels.jsonl")) == 7


def test_names_and_rationales_stay_home_unless_asked(tmp_path):
    pairs, labels = labelled("LL", "RR", "LR")
    labels = [
        replace(one, annotator={"a": "Ana Example", "b": "Ben Example"}[one.annotator], rationale="because Ana said so")
        for one in labels
    ]
    export(pairs, labels, tmp_path / "out", aggregation="dawid_skene")
    for path in (tmp_path / "out").iterdir():
        assert "Ana" not in path.read_text(encoding="utf-8"), path
    names = pseudonyms(["Ana Example", "Ben Example"], key="garden/0")
    assert {row["annotator"] for row in rows_of(tmp_path / "out" / "labels.jsonl")} == set(names.values())
    # A later export with one person more gives the same pseudonyms.
    assert pseudonyms(["Zoe", "Ana Example"], key="garden/0")["Ana Example"] == names["Ana Example"]
    assert pseudonyms(["Ana Example"], key="another project")["Ana Example"] != names["Ana Example"]

    export(pairs, labels, tmp_path / "open", with_names=True, with_rationales=True)
    rows = rows_of(tmp_path / "open" / "labels.jsonl")
    assert {(row["annotator"], row["rationale"]) for row in rows} >= {("Ana Example", "because Ana said so")}
    assert "Ana Example" in (tmp_path / "open" / "README.md").read_text(encoding="utf-8")


def test_the_manifest_accounts_for_every_file(tmp_path):
    pairs, labels = conversations(40)
    report = export(pairs, labels, tmp_path / "out", num_events=150, aggregation="dawid_skene")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"manifest.json", *manifest["files"]}
    for name, facts in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["rows"] == (None if name == "README.md" else data.count(b"\n")) == report.num_rows.get(name)
    assert (manifest["num_events"], manifest["aggregation"], manifest["project"]["name"]) == (
        150,
        "dawid_skene",
        "garden",
    )
    assert manifest["num_preferences"] + sum(manifest["dropped"].values()) == manifest["num_pairs"] == 40
    assert manifest["num_labels_by_kind"] == {"regular": 120}
    assert manifest["reliability"] == report.reliability != {}
    # A group may read what it could read of any new file.
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_same_labels_give_the_same_bytes(tmp_path):
    pairs, labels = conversations(40)
    for name in ("one", "two"):
        export(pairs, labels, tmp_path / name, aggregation="dawid_skene")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_card_has_every_figure_and_its_front_matter(tmp_path):
    pairs, labels = labelled(*["LLR", "RRL", "LTB", "TTS", "LRL"] * 8)
    pairs.append(stored_pair("gold", gold_choice="left"))
    labels += [label("gold", "a", "right", kind="gold"), label("pair-0", "a", "left", kind="repeat")]
    report = export(pairs, labels, tmp_path / "out", with_names=True, aggregation="dawid_skene")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"][0]["data_files"][0] == {"split": "train", "path": "train.jsonl"}
    agreement = report.statistics.agreement
    for figure in (
        agreement.percent_agreement,
        agreement.fleiss_kappa,
        agreement.krippendorff_alpha_nominal,
        agreement.krippendorff_alpha_ordinal,
        *(one.kappa for one in agreement.cohen_kappas),
    ):
        assert figure.value is not None
        assert figure.ci95 is not None
        assert f"{figure.value:.3f} | {figure.ci95[0]:.3f} to {figure.ci95[1]:.3f} | {figure.num_pairs}" in body
    for said in (
        "8 both_bad labels are left out",
        "| gold pair | 1 |",
        "Dawid and Skene",
        "0.0% of 1 (",
        "100.0% of 1 (",
    ):
        assert said in body
    assert "````text\nChoose the <b>better</b> one." in body
    assert "None" not in body
    assert "nan" not in body
    widths = {line.count("|") - line.count("\\|") for line in body.splitlines() if line.startswith("| a |")}
    assert widths == {10}


def test_the_card_says_which_labels_were_imported(tmp_path):
    pairs, labels = labelled("LL", "RR")
    export(pairs, labels, tmp_path / "own")
    export(pairs, [labels[0], *(replace(one, client_version="import") for one in labels[1:])], tmp_path / "mixed")
    said = "3 labels were imported from elsewhere"
    assert said in (tmp_path / "mixed" / "README.md").read_text(encoding="utf-8")
    assert "imported from elsewhere" not in (tmp_path / "own" / "README.md").read_text(encoding="utf-8")


def test_a_hostile_name_stays_in_its_cell(tmp_path):
    pairs, labels = labelled("LL", "RR")
    hostile = "<script>x</script> | ![](http://x)\n# heading"
    labels = [replace(one, annotator=hostile) if one.annotator == "a" else one for one in labels]
    export(pairs, labels, tmp_path / "out", with_names=True, settings=ProjectSettings(name=hostile))
    _, _, body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "<script>" not in body
    assert "![" not in body
    assert "\n# heading" not in body


def test_empty_parts_are_left_out_with_a_note(tmp_path):
    pairs, labels = labelled("LL", "RR")
    report = export(pairs, labels, tmp_path / "out")
    assert set(report.num_rows) == {"train.jsonl", "pairs.jsonl", "labels.jsonl"}
    assert report.notes == [
        "validation.jsonl would be empty and is left out.",
        "test.jsonl would be empty and is left out.",
    ]
    assert "validation.jsonl would be empty" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "test.jsonl").exists()


def test_an_earlier_export_is_replaced_and_anything_else_refused(tmp_path):
    pairs, labels = conversations(60)
    folder = tmp_path / "out"
    export(pairs, labels, folder)
    export(pairs[:2], labels[:6], folder)
    assert len(rows_of(folder / "pairs.jsonl")) == 2
    assert not (folder / "test.jsonl").exists()
    (tmp_path / "empty").mkdir()
    export(pairs, labels, tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "empty"}

    (folder / "thesis.docx").write_text("years of work")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=r"thesis\.docx"):
        export(pairs, labels, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"format": "something else", "files": {}}')
    with pytest.raises(DataError, match=r"manifest\.json"):
        export(pairs, labels, other)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        export(pairs, labels, tmp_path / "file")


def test_a_failure_leaves_nothing_behind(tmp_path):
    pairs, labels = conversations(20)
    broken = replace(pairs[3], comparison=replace(pairs[3].comparison, details={"score": float("nan")}))
    with pytest.raises(DataError, match="JSON"):
        export([*pairs[:3], broken, *pairs[4:]], labels, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_an_error(tmp_path):
    pairs, labels = conversations(4)
    mixed = [*pairs[:2], *(replace(one, comparison=replace(one.comparison, prompt="a string")) for one in pairs[2:])]
    with pytest.raises(DataError, match="2 of 4 prompts are strings"):
        export(mixed, labels, tmp_path / "out")
    assert export(mixed, labels, tmp_path / "out", prompts_as_messages=True).num_preferences == 4
    with pytest.raises(NothingUsableError, match="1 tied"):
        export(*labelled("LR"), tmp_path / "none")
    with pytest.raises(NothingUsableError, match="no pairs"):
        export([], [], tmp_path / "none")
    with pytest.raises(SettingsError, match="trian"):
        export(pairs, labels, tmp_path / "none", shares={"trian": 1.0})
    with pytest.raises(SettingsError, match="add up"):
        export(pairs, labels, tmp_path / "none", shares={"train": 0.5})
    assert not (tmp_path / "none").exists()


def test_rules_reach_the_aggregation(tmp_path):
    pairs, labels = labelled("LT", "RB", "LL", "L.")
    rows = {}
    for name, rules in {
        "default": {}, "drop": {"ties": "drop", "both_bad": "drop"}, "two": {"min_annotators": 2, "ties": "drop"},
    }.items():  # fmt: skip
        export(pairs, labels, tmp_path / name, shares={"train": 1.0}, **rules)
        rows[name] = [(row["pair_id"][-1], row["agreement"]) for row in rows_of(tmp_path / name / "train.jsonl")]
    assert rows == {
        "default": [("0", 0.75), ("1", 0.75), ("2", 1.0), ("3", 1.0)],
        "drop": [("0", 1.0), ("1", 1.0), ("2", 1.0), ("3", 1.0)],
        "two": [("2", 1.0)],
    }
