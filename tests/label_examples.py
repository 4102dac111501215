"""Small label projects for tests: pairs and labels by name, in few words."""

from dataclasses import replace

from prefloop.collection.label_records import LabelEvent, StoredPair, TaskKind
from prefloop.records import Choice, Comparison, Completion

LETTERS: dict[str, Choice] = {"L": "left", "R": "right", "T": "tie", "B": "both_bad", "S": "skip"}


def stored_pair(pair_id: str, *, left: str = "left text", right: str = "right", **rest) -> StoredPair:
    return StoredPair(Comparison(pair_id, f"prompt of {pair_id}", Completion(left), Completion(right)), **rest)


def label(
    pair_id: str,
    annotator: str,
    choice: Choice,
    *,
    kind: TaskKind = "regular",
    swapped: bool = False,
    seconds: float = 5.0,
    received_at: float = 1_000_000.0,
    **rest,
) -> LabelEvent:
    """A label by the pair's own sides."""
    other: dict[Choice, Choice] = {"left": "right", "right": "left"}
    event = LabelEvent(
        event_id=1,
        submission_id=f"submission-{pair_id}-{annotator}-{kind}",
        event="label",
        pair_id=pair_id,
        kind=kind,
        annotator=annotator,
        choice=choice,
        displayed_choice=other.get(choice, choice) if swapped else choice,
        swapped=swapped,
        strength=None,
        rationale="",
        opened_at=received_at - seconds,
        submitted_at=received_at,
        received_at=received_at,
        revision=1,
        client_version="test",
        chosen_by="random",
    )
    return replace(event, **rest)


def labelled(*rows: str) -> tuple[list[StoredPair], list[LabelEvent]]:
    """One row per pair, one letter per annotator (a, b, c, ...); a dot is no label. Sides alternate."""
    pairs = [stored_pair(f"pair-{number}") for number in range(len(rows))]
    labels = [
        label(f"pair-{number}", "abcdefgh"[place], LETTERS[letter], swapped=(number + place) % 2 == 1)
        for number, row in enumerate(rows)
        for place, letter in enumerate(row)
        if letter != "."
    ]
    return pairs, [replace(one, event_id=number) for number, one in enumerate(labels, start=1)]
