"""Small label projects for tests: pairs by number, settings without surprises, a person who answers."""

import itertools
from typing import Any

from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair, Submission, Task
from prefloop.collection.store import LabelStore, open_store
from prefloop.records import Choice, Comparison, Completion

_numbers = itertools.count(1)


def pair(number: int, **columns: Any) -> StoredPair:
    left, right = (Completion(f"{side} answer {number}", source=f"model {side}") for side in ("left", "right"))
    return StoredPair(Comparison(f"pair-{number:04}", f"prompt {number}", left, right), **columns)


def settings(**changes: Any) -> ProjectSettings:
    """Without gold pairs and repeats, unless they are asked for: each task is then the next pair of the queue."""
    return ProjectSettings(**{"gold_share": 0.0, "repeat_share": 0.0, **changes})


def project(
    location: str, *, num_pairs: int = 10, people: tuple[str, ...] = ("Ada", "Ben", "Cy"), **changes: Any
) -> LabelStore:
    """A project with pairs 0 to num_pairs - 1 and these people."""
    store = open_store(location, settings=settings(**changes))
    store.add_pairs([pair(number) for number in range(num_pairs)])
    for name in people:
        store.add_account(name)
    return store


def submission(task: Task, choice: Choice = "left", **columns: Any) -> Submission:
    """A label with an id of its own unless one is given."""
    given = {"submission_id": f"submission-{next(_numbers)}", "opened_at": 10.0, "submitted_at": 12.5, **columns}
    return Submission(task_id=task.task_id, choice=choice, **given)


def imported(pair_id: str, annotator: str, choice: Choice = "left", **columns: Any) -> LabelEvent:
    """A label from elsewhere, shown with the pair's own sides."""
    given: dict[str, Any] = {
        "event_id": 0,
        "submission_id": f"elsewhere-{pair_id}-{annotator}",
        "event": "label",
        "kind": "regular",
        "displayed_choice": choice,
        "swapped": False,
        "strength": None,
        "rationale": "",
        "opened_at": 1.0,
        "submitted_at": 2.0,
        "received_at": 3.0,
        "revision": 1,
        "client_version": "elsewhere",
        "chosen_by": "random",
        **columns,
    }
    return LabelEvent(pair_id=pair_id, annotator=annotator, choice=choice, **given)
