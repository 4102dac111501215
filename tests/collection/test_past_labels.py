"""Labels taken in from elsewhere: kept as they were, all or none."""

from dataclasses import replace

import pytest
from small_projects import imported, pair, project, settings, submission

from prefloop.collection.label_records import LabelEvent
from prefloop.collection.store import open_store
from prefloop.errors import DataError


def test_labels_keep_their_ids_times_and_people(store_location: str) -> None:
    with project(store_location, num_pairs=2, people=("Ada",)) as store:
        first = imported("pair-0000", "ada", "right", strength=3, rationale="so", details={"file": "a.json", "line": 3})
        second = imported("pair-0001", "Zoe", "tie", swapped=True, received_at=99.5, revision=4)
        assert store.import_labels([first, second]) == 2
        events = store.events()
        assert [replace(event, event_id=0) for event in events] == [replace(first, annotator="Ada"), second]
        assert store.current_labels() == events
        assert [(account.name, account.active) for account in store.accounts()] == [("Ada", True), ("Zoe", False)]
        assert (store.own_progress("Ada").num_done, store.own_progress("Zoe").num_done) == (1, 1)
        assert store.check() == []


def test_the_same_labels_again_are_left_as_they_are(store_location: str) -> None:
    with project(store_location, num_pairs=3) as store:
        labels = [imported(f"pair-000{number}", "Zoe") for number in range(3)]
        assert store.import_labels(labels[:2]) == 2
        assert store.import_labels(labels) == 1
        assert len(store.events()) == 3
        assert store.import_labels([]) == 0


def test_a_whole_record_moves_to_another_project(store_location: str, tmp_path) -> None:
    with project(str(tmp_path / "other.sqlite"), num_pairs=4) as other, project(store_location, num_pairs=4) as store:
        tasks = other.next_tasks("Ada", num=4)
        for task, choice in zip(tasks, ("left", "skip", "right", "both_bad"), strict=True):
            other.submit("Ada", submission(task, choice))
        other.submit("Ada", submission(tasks[0], "tie"))
        other.undo("Ada", "undo-0001")
        assert store.import_labels(other.events()) == 6

        def without_ids(events: list[LabelEvent]) -> list[LabelEvent]:
            return [replace(event, event_id=0) for event in events]

        assert without_ids(store.events()) == without_ids(other.events())
        assert without_ids(store.current_labels()) == without_ids(other.current_labels())
        assert store.check() == []


def test_people_go_on_where_their_labels_end(store_location: str) -> None:
    with project(store_location, num_pairs=3, annotators_per_pair=1) as store:
        order = [one.comparison.pair_id for one in store.pairs()]
        store.import_labels([imported(order[0], "Zoe"), imported(order[1], "Ada", "skip")])
        assert [task.pair_id for task in store.next_tasks("Ada", num=3)] == order[2:]
        assert [task.pair_id for task in store.next_tasks("Ben", num=3)] == order[1:2]
        undone = store.undo("Ada", "undo-0001")
        assert (undone.task.pair_id, undone.choice) == (order[1], "skip")
        assert store.check() == []


def test_never_more_than_k(store_location: str) -> None:
    with project(store_location, num_pairs=2, annotators_per_pair=2) as store:
        store.submit("Ada", submission(store.next_tasks("Ada")[0]))
        first, second = (one.comparison.pair_id for one in store.pairs())
        enough = [imported(first, "Y"), imported(first, "Z", "skip"), imported(second, "Y"), imported(second, "Z")]
        with pytest.raises(DataError, match=f"Pair '{first}' would have 3 labels, and the project has 2 per pair"):
            store.import_labels([*enough, imported(first, "X")])
        assert len(store.events()) == 1
        assert len(store.accounts()) == 3
        assert store.import_labels(enough) == 4
        assert store.progress().num_pairs_complete == 2
        assert store.next_tasks("Cy") == []
        assert store.check() == []


def test_gold_labels_and_repeats_count_for_nobodys_k(store_location: str) -> None:
    with open_store(store_location, settings=settings(annotators_per_pair=1)) as store:
        store.add_pairs([pair(1), pair(2, gold_choice="left")])
        labels = [imported("pair-0001", "Z"), imported("pair-0001", "Z", kind="repeat", submission_id="again-Z")]
        labels += [imported("pair-0002", name, kind="gold") for name in ("Y", "Z")]
        assert store.import_labels(labels) == 4
        assert len(store.current_labels()) == 4
        assert store.progress().num_labels == 1
        assert store.check() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pair_id": "pair-9999"}, "pair 'pair-9999', which is not in the project"),
        ({"annotator": " "}, "name has 0 characters"),
        ({"choice": "middle", "displayed_choice": "middle"}, "has the choice 'middle'; allowed are left, right, tie"),
        ({"choice": None, "displayed_choice": None}, "has the choice None"),
        ({"displayed_choice": "right"}, "says 'left', sides swapped: False, and displayed 'right'"),
        ({"swapped": True}, "that would be 'right'"),
        ({"strength": 5}, "has strength 5"),
        ({"choice": "tie", "displayed_choice": "tie", "strength": 1}, "has strength 1"),
        ({"event": "undo"}, "is an undo and has a choice"),
        ({"event": "vote"}, "'regular' 'vote', which does not exist"),
        ({"kind": "gold"}, "of kind 'gold', and pair 'pair-0001' has no known answer"),
        ({"pair_id": "pair-0005"}, "of kind 'regular', and pair 'pair-0005' has a known answer"),
        ({"submission_id": "elsewhere-pair-0000-Zoe"}, "is there already, with other content"),
        ({"pair_id": "pair-0000"}, "has revision 1, and there is a revision 1 already"),
        ({"revision": 0}, "has revision 0"),
        ({"rationale": "\x00"}, "holds a NUL"),
        ({"details": {"a": "\ud800"}}, "holds half a character"),
    ],
)
def test_one_label_that_cannot_be_stops_everything(store_location: str, changes: dict[str, object], said: str) -> None:
    with project(store_location, num_pairs=3) as store:
        store.add_pairs([pair(5, gold_choice="left")])
        store.import_labels([imported("pair-0000", "Zoe")])
        bad = replace(imported("pair-0001", "Zoe"), **changes)
        with pytest.raises(DataError, match=said):
            store.import_labels([imported("pair-0002", "Newcomer"), bad])
        assert len(store.events()) == 1
        assert "Newcomer" not in [account.name for account in store.accounts()]
        assert store.check() == []
