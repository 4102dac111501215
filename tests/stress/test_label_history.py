"""The judge of the stress test: a sound history passes, and each planted fault is found and called by its name."""

from dataclasses import replace

import pytest
from stress.label_history import Findings, LogEntry, Said, check_history

from label_examples import label
from prefloop.collection.label_records import LabelEvent

K = 2


def said_in(event: LabelEvent) -> Said:
    if event.event == "undo":
        return Said("undo", event.submission_id, event.annotator, event.pair_id)
    return Said(
        "label",
        event.submission_id,
        event.annotator,
        event.pair_id,
        event.choice,
        event.displayed_choice,
        event.strength,
        event.rationale,
        event.opened_at,
        event.submitted_at,
    )


def lines(event: LabelEvent, *outcomes: str) -> list[LogEntry]:
    """A client's lines about an event; the numbers of the receipt are the store's."""
    return [
        LogEntry(0.0, "sent", said_in(event))
        if outcome == "sent"
        else LogEntry(1.0, outcome, said_in(event), event.event_id, event.revision)  # pyright: ignore[reportArgumentType]
        for outcome in outcomes
    ]


def undo_of(event: LabelEvent, **rest) -> LabelEvent:
    taken_back = {"event": "undo", "choice": None, "displayed_choice": None, "strength": None, "rationale": ""}
    return replace(event, **{**taken_back, "revision": event.revision + 1, **rest})


# Ann labels p, Bob labels p (full: k is 2), Ann edits hers, Bob takes his back, Cid fills the place; Ann skips q and
# then says left; a gold pair has three labels, and a repeat of p stands beside Ann's label of p.
A1 = label("p", "Ann", "left", event_id=1, submission_id="a1", swapped=True, strength=3, rationale="clear")
B1 = label("p", "Bob", "right", event_id=2, submission_id="b1")
A2 = replace(A1, event_id=3, submission_id="a2", choice="tie", displayed_choice="tie", strength=None, revision=2)
B2 = undo_of(B1, event_id=4, submission_id="b2")
C1 = label("p", "Cid", "both_bad", event_id=5, submission_id="c1")
A3 = label("q", "Ann", "skip", event_id=6, submission_id="a3")
A4 = replace(A3, event_id=7, submission_id="a4", choice="left", displayed_choice="left", revision=2)
GOLD = [label("g", who, "left", kind="gold", event_id=8 + n, submission_id=f"g{who}") for n, who in enumerate("ABC")]
A5 = label("p", "Ann", "left", kind="repeat", event_id=11, submission_id="a5")
EVENTS = [A1, B1, A2, B2, C1, A3, A4, *GOLD, A5]
CURRENT = [A2, C1, A4, *GOLD, A5]
LOG = [entry for event in EVENTS for entry in lines(event, "sent", "sent", "acknowledged")]


def findings(log=LOG, events=EVENTS, current=CURRENT, k: int = K) -> Findings:
    return check_history(log, events, current, annotators_per_pair=k)


def faults(found: Findings) -> set[str]:
    kinds = {"lost": found.lost, "doubled": found.doubled, "over k": found.over_k, "other": found.other}
    return {kind for kind, sentences in kinds.items() if sentences}


def without(log: list[LogEntry], event: LabelEvent, *outcomes: str) -> list[LogEntry]:
    return [one for one in log if one.said.submission_id != event.submission_id or one.outcome not in outcomes]


def test_a_sound_history_passes() -> None:
    found = findings()
    assert found.all() == []
    assert (found.num_acknowledged, found.num_unacknowledged_kept, found.num_unacknowledged_absent) == (11, 0, 0)


def test_what_was_never_acknowledged_is_there_whole_or_absent() -> None:
    absent = label("q", "Bob", "left", submission_id="b3")
    found = findings(without(LOG, C1, "acknowledged") + lines(absent, "sent"))
    assert found.all() == []
    assert (found.num_acknowledged, found.num_unacknowledged_kept, found.num_unacknowledged_absent) == (10, 1, 1)


def test_half_of_an_unacknowledged_label_is_found() -> None:
    log = without(LOG, A1, "acknowledged")
    events = [replace(A1, rationale="cle"), *EVENTS[1:]]
    assert findings(log, events).all() == ["other: unacknowledged a1 is there in part: ['rationale']"]


def test_a_lost_label_is_found() -> None:
    # The last event of its task: nothing but the client's log tells.
    events, current = [one for one in EVENTS if one is not C1], [one for one in CURRENT if one is not C1]
    assert findings(LOG, events, current).all() == ["lost: c1 was acknowledged and is not there"]


def test_a_lost_edit_and_a_lost_undo_are_found() -> None:
    for gone in (A4, B2):
        events = [one for one in EVENTS if one is not gone]
        assert f"{gone.submission_id} was acknowledged and is not there" in findings(LOG, events).lost


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("annotator", "Bob"), ("pair_id", "r"), ("choice", "right"), ("displayed_choice", "left"), ("strength", 2),
        ("rationale", ""), ("opened_at", 1.0), ("submitted_at", 1.0), ("event_id", 12), ("revision", 2),
    ],
)  # fmt: skip
def test_a_changed_word_is_found(name: str, value: object) -> None:
    changed = replace(A1, **{name: value})
    events = sorted((changed, *EVENTS[1:]), key=lambda event: event.event_id)
    what = "receipt" if name in ("event_id", "revision") else name
    assert f"a1 is there with another {what}" in findings(LOG, events).lost


def test_a_doubled_label_is_found() -> None:
    twice = replace(C1, event_id=12)
    assert "c1 is there 2 times" in findings(LOG, [*EVENTS, twice]).doubled


def test_a_label_that_nobody_sent_is_found() -> None:
    """As when a server that stored a label makes an id of its own on the second try."""
    invented = label("q", "Bob", "left", event_id=12, submission_id="other")
    assert findings(LOG, [*EVENTS, invented], [*CURRENT, invented]).all() == [
        "doubled: nobody sent event 12 (label other of Bob for q)"
    ]


def test_a_second_label_of_one_person_for_a_pair_is_found() -> None:
    """A pair given twice: each label stands for itself, with a first revision of its own."""
    second = label("p", "Cid", "left", event_id=12, submission_id="c2")
    found = findings(LOG + lines(second, "sent", "acknowledged"), [*EVENTS, second], [*CURRENT, second], k=3)
    assert "event 12 (label c2 of Cid for p) has revision 1 after 1" in found.doubled
    assert "Cid has 2 labels that stand for p" in found.doubled


def test_one_label_too_many_is_found_at_its_moment_even_if_it_goes_again() -> None:
    late = label("p", "Dan", "left", event_id=12, submission_id="d1")
    gone = undo_of(late, event_id=13, submission_id="d2")
    log = LOG + lines(late, "sent", "acknowledged") + lines(gone, "sent", "acknowledged")
    found = findings(log, [*EVENTS, late, gone])
    assert found.all() == ["over k: p has 3 labels after event 12 (label d1 of Dan for p)"]


def test_skips_gold_pairs_and_repeats_count_for_nobodys_k() -> None:
    skip = label("p", "Dan", "skip", event_id=12, submission_id="d1")
    assert findings(LOG + lines(skip, "sent", "acknowledged"), [*EVENTS, skip], [*CURRENT, skip]).all() == []
    assert faults(findings(k=1)) == {"over k"}


def test_an_edit_from_skip_to_a_side_counts() -> None:
    events = [label("p", who, "left", event_id=n, submission_id=who) for n, who in enumerate(("Ann", "Bob"), 1)]
    events.append(label("p", "Cid", "skip", event_id=3, submission_id="Cid"))
    events.append(replace(events[2], event_id=4, submission_id="Cid 2", choice="left", revision=2))
    found = findings([], events, [])
    assert found.over_k == ["p has 3 labels after event 4 (label Cid 2 of Cid for p)"]


def test_a_refused_label_that_was_kept_is_found() -> None:
    log = without(LOG, C1, "acknowledged") + lines(C1, "refused")
    assert findings(log).all() == ["other: c1 was refused and kept all the same"]


def test_an_undo_of_another_label_than_the_latest_is_found() -> None:
    wrong = undo_of(A4, event_id=12, submission_id="a6")
    log = LOG + lines(wrong, "sent", "acknowledged")
    found = findings(log, [*EVENTS, wrong], [one for one in CURRENT if one is not A4])
    assert found.all() == ["other: event 12 (undo a6 of Ann for q) does not take back the person's latest label"]


def test_a_missing_revision_is_found() -> None:
    found = findings(without(LOG, A3, "sent", "acknowledged"), [one for one in EVENTS if one is not A3])
    assert found.all() == ["lost: before event 7 (label a4 of Ann for q) revisions from 1 on are missing"]


@pytest.mark.parametrize("current", [CURRENT[1:], [*CURRENT, A1], [replace(A2, rationale="no"), *CURRENT[1:]]])
def test_a_view_that_does_not_follow_the_record_is_found(current: list[LabelEvent]) -> None:
    assert "other" in faults(findings(current=current))
