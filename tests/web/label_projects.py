"""Label projects for the tests of the server and its pages."""

from pathlib import Path
from typing import Any

from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair, Submission
from prefloop.collection.store import LabelStore, open_store
from prefloop.records import Comparison, Completion

TIMES = {"opened_at": 1000.0, "submitted_at": 1010.0}


def plain_pair(number: int) -> StoredPair:
    """A pair whose texts all differ from those of other pairs."""
    left, right = Completion(f"first answer {number}"), Completion(f"second answer {number}", ended=number % 2 == 0)
    return StoredPair(Comparison(f"pair-{number}", f"prompt {number}", left, right))


def new_project(folder: Path, *, num_pairs: int = 12, **settings: Any) -> LabelStore:
    """A project without gold pairs and repeats, unless `settings` say otherwise."""
    chosen = ProjectSettings(**{"gold_share": 0.0, "repeat_share": 0.0, "name": "Test project", **settings})
    store = open_store(folder / "labels.sqlite", settings=chosen)
    store.add_pairs([plain_pair(number) for number in range(num_pairs)])
    return store


def label_of(task: dict[str, Any], choice: str = "left", **more: Any) -> dict[str, Any]:
    """A submission for a task as the page got it."""
    return {"submission_id": f"label-of-{task['task_id']}"[:100], "task_id": task["task_id"], "choice": choice} | (
        TIMES | more
    )


def say(store: LabelStore, annotator: str, choice: str = "left", *, now: float | None = None, **more: Any) -> None:
    """One label straight into the store."""
    (task,) = store.next_tasks(annotator, num=1, now=now)
    body = {"submission_id": f"label-of-{task.task_id}", "task_id": task.task_id, "choice": choice, **TIMES, **more}
    store.submit(annotator, Submission.model_validate(body), now=now)


def chosen_texts(store: LabelStore, annotator: str) -> dict[str, str]:
    """Prompt -> the text of the side that was chosen, or the choice itself where it names no side."""
    comparisons = {pair.comparison.pair_id: pair.comparison for pair in store.pairs()}
    return {
        str(comparisons[label.pair_id].prompt): _chosen_text(label, comparisons[label.pair_id])
        for label in store.current_labels()
        if label.annotator == annotator
    }


def _chosen_text(label: LabelEvent, comparison: Comparison) -> str:
    if label.choice == "left":
        return comparison.left.text
    return comparison.right.text if label.choice == "right" else str(label.choice)
