"""Labels, changed labels, labels taken back, and the same message twice."""

import pytest
from small_projects import project, submission

from prefloop.collection.store import open_store
from prefloop.errors import DataError, LabelRefusedError


def test_the_same_submission_again_gives_the_first_receipt(store_location: str) -> None:
    with project(store_location) as store:
        (task,) = store.next_tasks("Ada")
        said = submission(task, "left", strength=2, rationale="why")
        first = store.submit("Ada", said)
        again = store.submit("Ada", said.model_copy(update={"submitted_at": 99.0}), now=1e10)
        assert (first.replayed, again.replayed) == (False, True)
        assert (again.event_id, again.revision) == (first.event_id, first.revision)
        store.undo("Ada", "undo-0001")
        assert store.submit("Ada", said).replayed
        assert len(store.events()) == 2
        assert store.current_labels() == []


@pytest.mark.parametrize(
    "change",
    [{"choice": "right"}, {"strength": 3}, {"rationale": "other"}, {"task_id": "another"}],
    ids=lambda change: next(iter(change)),
)
def test_the_same_id_with_other_content_is_refused(store_location: str, change: dict[str, object]) -> None:
    with project(store_location) as store:
        (task,) = store.next_tasks("Ada")
        said = submission(task, "left", strength=2)
        store.submit("Ada", said)
        with pytest.raises(LabelRefusedError, match="used before with other content") as problem:
            store.submit("Ada", said.model_copy(update=change))
        assert problem.value.reason == "id_reused"
        assert len(store.events()) == 1


def test_an_id_belongs_to_one_person_and_one_act(store_location: str) -> None:
    with project(store_location) as store:
        said = submission(store.next_tasks("Ada")[0])
        store.submit("Ada", said)
        bens = submission(store.next_tasks("Ben")[0], submission_id=said.submission_id)
        for act in (
            lambda: store.submit("Ben", bens),
            lambda: store.submit("Ben", said),
            lambda: store.undo("Ada", said.submission_id),
            lambda: store.undo("Ben", said.submission_id),
        ):
            with pytest.raises(LabelRefusedError) as problem:
                act()
            assert problem.value.reason == "id_reused"


def test_a_task_of_somebody_else_is_unknown(store_location: str) -> None:
    with project(store_location) as store:
        (task,) = store.next_tasks("Ada")
        with pytest.raises(LabelRefusedError, match=r"no task .* for 'Ben'") as problem:
            store.submit("Ben", submission(task))
        assert problem.value.reason == "unknown_task"


def test_who_may_not_work_is_told_so(store_location: str) -> None:
    with project(store_location) as store:
        (task,) = store.next_tasks("Ada")
        store.deactivate("Ada")
        with pytest.raises(DataError, match="'Ada' is not active"):
            store.submit("Ada", submission(task))
        with pytest.raises(DataError, match="no account called 'Eve'"):
            store.next_tasks("Eve")


def test_strength_goes_with_a_side(store_location: str) -> None:
    with project(store_location) as store:
        (task,) = store.next_tasks("Ada")
        with pytest.raises(DataError, match="choice 'tie' has a strength"):
            store.submit("Ada", submission(task, "tie", strength=1))


def test_a_second_answer_to_a_task_is_a_revision(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1) as store:
        (task,) = store.next_tasks("Ada")
        receipts = [store.submit("Ada", submission(task, choice)) for choice in ("left", "tie", "right")]
        assert [one.revision for one in receipts] == [1, 2, 3]
        assert [event.displayed_choice for event in store.events()] == ["left", "tie", "right"]
        assert [label.displayed_choice for label in store.current_labels()] == ["right"]
        assert store.progress().num_labels == 1
        assert store.check() == []


def test_a_skip_frees_the_place_and_a_choice_takes_it(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1) as store:
        (task,) = store.next_tasks("Ada")
        store.submit("Ada", submission(task, "left"))
        assert store.next_tasks("Ben") == []
        store.submit("Ada", submission(task, "skip"))
        (bens,) = store.next_tasks("Ben")
        store.submit("Ben", submission(bens, "right"))
        with pytest.raises(LabelRefusedError) as problem:
            store.submit("Ada", submission(task, "left"))
        assert problem.value.reason == "pair_complete"
        assert [label.displayed_choice for label in store.current_labels()] == ["skip", "right"]
        assert store.check() == []


def test_undo_takes_back_the_latest_and_then_the_one_before(store_location: str) -> None:
    with project(store_location) as store:
        tasks = store.next_tasks("Ada", num=3, now=100.0)
        for task in tasks:
            store.submit("Ada", submission(task, "right", strength=3, rationale=f"on {task.pair_id}"), now=101.0)
        # A change makes the first the latest again.
        store.submit("Ada", submission(tasks[0], "tie"), now=102.0)
        undone = [store.undo("Ada", f"undo-000{number}", now=110.0) for number in range(3)]
        assert [one.task.pair_id for one in undone] == [tasks[index].pair_id for index in (0, 2, 1)]
        assert [(one.choice, one.strength, one.rationale) for one in undone] == [
            ("tie", None, ""),
            ("right", 3, f"on {tasks[2].pair_id}"),
            ("right", 3, f"on {tasks[1].pair_id}"),
        ]
        assert undone[0].task.expires_at == 110.0 + store.settings.lease_seconds
        assert undone[0].task.swapped == tasks[0].swapped
        assert [one.receipt.revision for one in undone] == [3, 2, 2]
        with pytest.raises(LabelRefusedError) as problem:
            store.undo("Ada", "undo-0009")
        assert problem.value.reason == "nothing_to_undo"
        assert store.current_labels() == []
        assert {event.event: event.choice for event in store.events()[-3:]} == {"undo": None}
        assert [one.task_id for one in store.next_tasks("Ada", num=3, now=111.0)] == [one.task_id for one in tasks]
        assert store.check() == []


def test_the_same_undo_again_takes_nothing_more(store_location: str) -> None:
    with project(store_location) as store:
        for task in store.next_tasks("Ada", num=2):
            store.submit("Ada", submission(task, "left", rationale=task.pair_id))
        first = store.undo("Ada", "undo-0001")
        again = store.undo("Ada", "undo-0001")
        assert (again.choice, again.rationale, again.task) == (first.choice, first.rationale, first.task)
        assert (first.receipt.replayed, again.receipt.replayed) == (False, True)
        assert len(store.current_labels()) == 1


def test_a_label_after_an_undo_stands(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1) as store:
        (task,) = store.next_tasks("Ada")
        store.submit("Ada", submission(task, "left"))
        undone = store.undo("Ada", "undo-0001")
        # The place is held while the lease lives.
        assert store.next_tasks("Ben") == []
        receipt = store.submit("Ada", submission(undone.task, "right"))
        assert receipt.revision == 3
        assert [label.displayed_choice for label in store.current_labels()] == ["right"]
        assert [event.event for event in store.events()] == ["label", "undo", "label"]
        assert store.check() == []


def test_a_late_label_is_taken_while_the_pair_needs_one(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1, lease_seconds=10.0) as store:
        (task,) = store.next_tasks("Ada", now=100.0)
        (bens,) = store.next_tasks("Ben", now=111.0)
        assert bens.pair_id == task.pair_id
        assert store.submit("Ada", submission(task), now=112.0).revision == 1
        with pytest.raises(LabelRefusedError, match="Other people have answered this pair") as problem:
            store.submit("Ben", submission(bens), now=113.0)
        assert problem.value.reason == "pair_complete"
        assert [label.annotator for label in store.current_labels()] == ["Ada"]
        assert store.check() == []


def test_submit_and_next_is_both_or_neither(store_location: str) -> None:
    with project(store_location, num_pairs=3) as store:
        (task,) = store.next_tasks("Ada")
        receipt, tasks = store.submit_and_next("Ada", submission(task), num_next=2)
        assert receipt.revision == 1
        assert len(tasks) == 2
        assert tasks == store.next_tasks("Ada", num=2, now=tasks[0].expires_at - store.settings.lease_seconds)
        with pytest.raises(DataError, match="101 tasks at once"):
            store.submit_and_next("Ada", submission(tasks[0]), num_next=101)
        assert len(store.events()) == 1


def test_the_same_label_from_two_connections_is_one(store_location: str) -> None:
    with project(store_location) as store, open_store(store_location) as elsewhere:
        said = submission(store.next_tasks("Ada")[0])
        assert [one.submit("Ada", said).replayed for one in (store, elsewhere)] == [False, True]
