"""A label project from outside: making and opening it, its settings, its pairs, and what texts it keeps."""

from dataclasses import replace

import pytest
from small_projects import imported, pair, project, settings, submission
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from prefloop.collection.label_database import open_database
from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair, Submission
from prefloop.collection.store import AddedPairs, open_store
from prefloop.errors import DataError, SettingsError
from prefloop.records import Comparison, Completion, Message

HOSTILE = [
    "<script>alert('x')</script><img src=x onerror=alert(1)>",
    "'); DROP TABLE events; --",
    '" OR 1=1 -- %s :name {braces} ?',
    "👩‍👩‍👧‍👦 emoji 🏴󠁧󠁢󠁥󠁮󠁧󠁿 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\u202eright to left\u202c שלום مرحبا \u200f\u200b",
    "line one\r\nline two\rthree\n\ttab \x01\x1b[31m bell \x07",
    "e\u0301 is not \u00e9, \ufb01 is not fi, \ufffd \ufeff \uffff",
    "backslash \\u0000 \\x00 \\ ' \" `",
    "  spaces around  ",
    "x" * 10_000,
]


def test_a_pair_comes_back_as_it_was_given(store_location: str) -> None:
    prompt = (Message("system", "Be brief."), Message("user", "How?"))
    details = {"run": "runs/7", "sampling": {"temperature": 0.7, "top_k": [1, 2]}, "seed": 3, "none": None}
    left, right = Completion("so", ended=False, source="sft@200"), Completion("thus", source="ppo@10")
    first = StoredPair(Comparison("a", prompt, left, right, details), margin=-0.1, disagreement=1e-9)
    gold = StoredPair(Comparison("g", "Why?", right, left), gold_choice="both_bad")
    with open_store(store_location) as store:
        assert store.add_pairs([gold, first]) == AddedPairs(2, 0)
        assert store.pairs() == [first, gold]


def test_every_field_of_a_label_comes_back(store_location: str) -> None:
    with project(store_location, num_pairs=1) as store:
        (task,) = store.next_tasks("ada", num=1, now=100.0)
        said = submission(task, "right", strength=4, rationale="clearer", client_version="page 3")
        receipt = store.submit("ADA", said, now=123.25)
        (event,) = store.events()
    assert event == LabelEvent(
        event_id=receipt.event_id,
        submission_id=said.submission_id,
        event="label",
        pair_id="pair-0000",
        kind="regular",
        annotator="Ada",
        choice="left" if task.swapped else "right",
        displayed_choice="right",
        swapped=task.swapped,
        strength=4,
        rationale="clearer",
        opened_at=10.0,
        submitted_at=12.5,
        received_at=123.25,
        revision=1,
        client_version="page 3",
        chosen_by="random",
    )


def test_a_project_survives_being_closed(store_location: str) -> None:
    rules = settings(name="Tea", guidelines="Be kind.\nBe brief.", annotators_per_pair=2, lease_seconds=5.5)
    with open_store(store_location, settings=rules) as store:
        store.add_pairs([pair(1)])
        store.add_account("Ada")
        store.submit("Ada", submission(store.next_tasks("Ada")[0]))
        events = store.events()
    with open_store(store_location, settings=rules, must_exist=True) as store:
        assert (store.settings, store.events(), len(store.pairs())) == (rules, events, 1)
        assert store.check() == []


def test_other_settings_are_named(store_location: str) -> None:
    open_store(store_location, settings=settings(seed=1)).close()
    with pytest.raises(
        SettingsError, match=r"annotators_per_pair is 3, given was 5; .*seed is 1, given was 2"
    ) as problem:
        open_store(store_location, settings=settings(seed=2, annotators_per_pair=5))
    assert "lease_seconds" not in str(problem.value)


def test_settings_change_but_k_only_before_the_first_label(store_location: str) -> None:
    with project(store_location, num_pairs=2) as store:
        store.update_settings(settings(annotators_per_pair=1, guidelines="new"))
        assert store.settings.guidelines == "new"
        store.submit("Ada", submission(store.next_tasks("Ada")[0]))
        store.update_settings(settings(annotators_per_pair=1, name="renamed"))
        with pytest.raises(SettingsError, match="annotators_per_pair is 1 and cannot become 2"):
            store.update_settings(settings(annotators_per_pair=2))
        assert store.settings == settings(annotators_per_pair=1, name="renamed")


def test_settings_changed_elsewhere_are_in_force_here(store_location: str) -> None:
    with project(store_location) as store, open_store(store_location) as elsewhere:
        elsewhere.update_settings(settings(lease_seconds=7.0))
        assert store.next_tasks("Ada", now=100.0)[0].expires_at == 107.0


@pytest.mark.parametrize(("version", "advice"), [(99, "or a newer one"), (1, "and import the labels into a new store")])
def test_a_store_of_another_version_is_left_to_its_prefloop(store_location: str, version: int, advice: str) -> None:
    open_store(store_location).close()
    database = open_database(store_location, must_exist=True)
    with database.writing() as connection:
        connection.execute(text("UPDATE project SET schema_version = :version"), {"version": version})
    database.close()
    wanted = rf"version {version} of the label store, and this prefloop reads version 2\. .* {advice}"
    with pytest.raises(DataError, match=wanted):
        open_store(store_location)


def test_settings_of_a_newer_prefloop_are_named(store_location: str) -> None:
    open_store(store_location).close()
    database = open_database(store_location, must_exist=True)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE project SET settings = replace(settings, '\"seed\"', '\"dice\"')")
    database.close()
    with pytest.raises(DataError, match=r"settings that this prefloop does not know \(dice\)"):
        open_store(store_location)


def test_the_same_pairs_again_are_counted(store_location: str) -> None:
    with open_store(store_location) as store:
        pairs = [pair(number, margin=number / 3, gold_choice="left" if number == 2 else None) for number in range(4)]
        assert store.add_pairs(pairs[:3]) == AddedPairs(3, 0)
        before = store.pairs()
        assert store.add_pairs([*pairs, pairs[3]]) == AddedPairs(1, 4)
        assert store.pairs()[:3] == before
        assert store.progress().num_pairs == 3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(pair(1), comparison=replace(pair(1).comparison, prompt="another")), r"other content \(content\)"),
        (replace(pair(1), comparison=replace(pair(1).comparison, details={"seed": 1})), r"other content \(content\)"),
        (pair(1, gold_choice="tie"), r"other content \(gold_choice\)"),
        (pair(1, margin=0.5, disagreement=0.5), r"other content \(margin, disagreement\)"),
    ],
)
def test_a_known_pair_with_other_content_stops_everything(store_location: str, other: StoredPair, said: str) -> None:
    with open_store(store_location) as store:
        store.add_pairs([pair(1)])
        with pytest.raises(DataError, match=f"'pair-0001' is there already with {said}"):
            store.add_pairs([pair(2), other])
        with pytest.raises(DataError, match="other content"):
            store.add_pairs([pair(3), replace(pair(3), margin=1.0)])
        assert [one.comparison.pair_id for one in store.pairs()] == ["pair-0001"]
        assert store.progress().num_pairs == 1
        assert store.check() == []


def with_answers(left: str, right: str) -> StoredPair:
    return StoredPair(Comparison("bad", "prompt", Completion(left), Completion(right)))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (with_answers(" \n", "b"), "'bad' has an empty left answer"),
        (with_answers("a", ""), "'bad' has an empty right answer"),
        (with_answers("one  two", " one\ntwo"), "'bad' has the same answer twice"),
        (with_answers("a\x00b", "b"), "'bad' holds a NUL character at place 1"),
        (with_answers("a", "b\ud800"), "'bad' holds half a character .* at place 1"),
        (pair(9, margin=float("nan")), "has margin nan"),
        (pair(9, disagreement=-1.0), "has disagreement -1.0"),
        (pair(9, gold_choice="skip"), "has the known answer 'skip'"),
        (replace(pair(9), comparison=replace(pair(9).comparison, pair_id="")), "pair_id of 0 characters"),
        (replace(pair(9), comparison=replace(pair(9).comparison, pair_id="i\x00")), "A pair_id holds a NUL"),
        (replace(pair(9), comparison=replace(pair(9).comparison, details={"at": {1}})), "JSON cannot keep"),
        (replace(pair(9), comparison=replace(pair(9).comparison, details={"n": float("inf")})), "JSON cannot keep"),
        (replace(pair(9), comparison=replace(pair(9).comparison, details={"deep": [{"\x00": 1}]})), "holds a NUL"),
        (replace(pair(9), comparison=replace(pair(9).comparison, prompt=(Message("user", "\x00"),))), "holds a NUL"),
    ],
)
def test_a_pair_that_cannot_be_used_stops_everything(store_location: str, bad: StoredPair, said: str) -> None:
    with open_store(store_location) as store:
        with pytest.raises(DataError, match=said):
            store.add_pairs([pair(1), bad])
        assert store.pairs() == []


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_come_back_as_they_were(store_location: str, words: str) -> None:
    comparison = Comparison(words[:150], words, Completion("a " + words, source=words), Completion("b"), {words: words})
    with open_store(store_location, settings=settings(name=words[:200], guidelines=words)) as store:
        store.add_pairs([StoredPair(comparison)])
        store.add_account(words[:90])
        name = words[:90].strip()
        (task,) = store.next_tasks(words[:90])
        said = submission(task, rationale=words, submission_id=f"id-{words}"[:100], client_version=words[:100])
        store.submit(name, said)
        (event,) = store.events()
        assert store.pairs() == [StoredPair(comparison)]
        assert {task.displayed_left, task.displayed_right} == {"a " + words, "b"}
        assert (event.rationale, event.submission_id, event.client_version) == (
            words, f"id-{words}"[:100], words[:100],
        )  # fmt: skip
        assert event.annotator == name
        assert store.settings.guidelines == words
        assert store.check() == []


@pytest.mark.parametrize(
    ("field", "words"), [("rationale", "a\x00b"), ("client_version", "\udfff"), ("submission_id", "\x00" * 8)]
)
def test_words_no_database_keeps_are_refused(store_location: str, field: str, words: str) -> None:
    with project(store_location, num_pairs=1) as store:
        (task,) = store.next_tasks("Ada")
        bad = Submission.model_construct(**{**submission(task).model_dump(), field: words})
        with pytest.raises(DataError, match=f"The {field} of a label holds (a NUL|half a) character"):
            store.submit("Ada", bad)
        with pytest.raises(DataError, match="A name holds"):
            store.add_account(f"Eve {words}")
        with pytest.raises(DataError, match="The text of the guidelines holds"):
            store.update_settings(ProjectSettings.model_construct(**{**dict(store.settings), "guidelines": words}))
        assert store.events() == []


@pytest.mark.parametrize("statement", ["UPDATE events SET choice = 'tie'", "DELETE FROM events"])
def test_what_was_said_cannot_be_rewritten(store_location: str, statement: str) -> None:
    with project(store_location, num_pairs=1) as store:
        store.submit("Ada", submission(store.next_tasks("Ada")[0]))
        before = store.events()
        database = open_database(store_location, must_exist=True)
        statements = [statement] + (["TRUNCATE events"] if database.is_postgresql else [])
        for one in statements:
            with pytest.raises((DBAPIError, DataError), match="append-only"), database.writing() as connection:
                connection.execute(text(one))
        database.close()
        assert store.events() == before


def test_events_after_one(store_location: str) -> None:
    with project(store_location) as store:
        for task in store.next_tasks("Ada", num=4):
            store.submit("Ada", submission(task))
        everything = store.events()
        assert store.events(after=everything[1].event_id) == everything[2:]
        assert store.events(after=everything[-1].event_id) == []


def test_progress_by_hand(store_location: str) -> None:
    """Three pairs with two labels each: Ada labels two and skips one, Ben labels Ada's first."""
    with open_store(store_location, settings=settings(annotators_per_pair=2)) as store:
        store.add_pairs([pair(1), pair(2), pair(3), pair(4, gold_choice="left")])
        for name in ("Ada", "Ben", "Cy"):
            store.add_account(name)
        for task, choice in zip(store.next_tasks("Ada", num=3), ("left", "tie", "skip"), strict=True):
            store.submit("Ada", submission(task, choice))
        store.submit("Ben", submission(store.next_tasks("Ben")[0], "both_bad"))
        whole = store.progress()
        people = [store.own_progress(name) for name in ("ada", "Ben", "Cy")]
        with pytest.raises(DataError, match="no account called 'Eve'"):
            store.own_progress("Eve")
    assert (whole.num_pairs, whole.num_pairs_complete, whole.num_labels, whole.num_labels_wanted) == (3, 1, 3, 6)
    # Two pairs still need a label: Ada has answered or skipped both, Ben's one label was of the third.
    assert [(one.num_done, one.num_left) for one in people] == [(3, 0), (1, 2), (0, 2)]


def test_backup(store_location: str, tmp_path) -> None:
    copy = tmp_path / "copy.sqlite"
    with project(store_location) as store:
        store.submit("Ada", submission(store.next_tasks("Ada")[0]))
        if store.location.startswith("postgresql"):
            with pytest.raises(DataError, match="pg_dump"):
                store.backup(copy)
            return
        store.backup(copy)
        with pytest.raises(DataError, match="exists already"):
            store.backup(copy)
        store.import_labels([imported("pair-0003", "Late")])
        with open_store(copy, must_exist=True) as other:
            assert other.events() == store.events()[:1]
            assert other.pairs() == store.pairs()
            assert other.check() == []
