"""Faults planted by hand, each found and named."""

import sqlite3

import pytest
from small_projects import imported, pair, project, submission

from prefloop.collection.label_database import open_database
from prefloop.collection.store import LabelStore, open_store

WITHOUT_TRIGGERS = {
    "sqlite": ("DROP TRIGGER events_keep_their_words", "DROP TRIGGER events_stay"),
    "postgresql": ("ALTER TABLE events DISABLE TRIGGER ALL",),
}


def busy_project(location: str) -> LabelStore:
    """Labels, a change, an undo, a gold label, two people's labels on one pair; k is 2."""
    store = project(location, num_pairs=5, annotators_per_pair=2)
    store.add_pairs([pair(9, gold_choice="left")])
    tasks = store.next_tasks("Ada", num=4)
    for task in tasks:
        store.submit("Ada", submission(task, "right"))
    store.submit("Ada", submission(tasks[0], "left"))
    store.undo("Ada", "undo-0001")
    store.submit("Ben", submission(store.next_tasks("Ben", num=2)[1], "left"))
    store.import_labels([imported("pair-0009", "Zoe", kind="gold")])
    return store


def plant(location: str, *statements: str) -> None:
    database = open_database(location, must_exist=True)
    try:
        with database.writing() as connection:
            for statement in (*WITHOUT_TRIGGERS["postgresql" if database.is_postgresql else "sqlite"], *statements):
                connection.exec_driver_sql(statement)
    finally:
        database.close()


def test_a_busy_project_is_sound(store_location: str) -> None:
    with busy_project(store_location) as store:
        assert store.check() == []


ONE_LABEL_PER_PAIR = "UPDATE project SET settings = replace(settings, '_pair\":2', '_pair\":1')"
TWICE = (
    "INSERT INTO tasks (task_id, pair_ref, account_ref, kind, is_repeat, swapped, sequence, expires_at, revision, "
    "label_event, label_choice) SELECT 'other', pair_ref, {account}, kind, is_repeat, swapped, 99, 0, 1, 77, 'left' "
    "FROM tasks WHERE label_event = 2",
    "INSERT INTO events (id, submission_id, event, task_ref, pair_ref, account_ref, kind, choice, displayed_choice, "
    "swapped, rationale, opened_at, submitted_at, received_at, revision, client_version, chosen_by, details) "
    "SELECT 77, 'other', 'label', (SELECT id FROM tasks WHERE task_id = 'other'), pair_ref, {event_account}, kind, "
    "'left', CASE WHEN swapped THEN 'right' ELSE 'left' END, "
    "swapped, '', 0, 0, 0, 1, '', 'random', '{{}}' FROM events WHERE id = 2",
)


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        (["UPDATE pairs SET num_labels = 0 WHERE num_labels = 2"], ["wrong count of them", "open though"]),
        (["UPDATE pairs SET open_position = NULL WHERE num_labels < 2"], ["open though they have enough labels"]),
        ([ONE_LABEL_PER_PAIR], ["more labels than", "open though"]),
        (["UPDATE project SET num_open_pairs = 7"], ["project has a wrong count of pairs"]),
        (["UPDATE project SET num_regular_pairs = 7"], ["wrong count of pairs"]),
        (["UPDATE tasks SET label_event = NULL WHERE label_event = 2"], ["1 tasks do not follow"]),
        (["UPDATE tasks SET revision = 9 WHERE label_event = 2"], ["1 tasks do not follow"]),
        (["DELETE FROM events WHERE id = 2"], ["1 tasks do not follow", "wrong count of them"]),
        (["UPDATE events SET choice = 'tie' WHERE id = 2"], ["1 tasks do not follow", "name the other side"]),
        (["UPDATE events SET pair_ref = 6 WHERE id = 2"], ["not about the pair"]),
        (["DELETE FROM events WHERE id IN (1, 5)"], ["1 events take back a label that was not there"]),
        ([one.format(account=3, event_account=1) for one in TWICE], ["1 people have two labels that stand"]),
        ([one.format(account=3, event_account=3) for one in TWICE], ["more labels than"]),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(store_location: str, faults: list[str], found: list[str]) -> None:
    busy_project(store_location).close()
    plant(store_location, *faults)
    with open_store(store_location) as store:
        problems = store.check()
    for one in found:
        assert any(_matches(one, problem) for problem in problems), (one, problems)


def _matches(pattern: str, problem: str) -> bool:
    first, *rest = pattern.split(" .* ")
    return first in problem and all(part in problem for part in rest)


def test_many_examples_are_cut_short(store_location: str) -> None:
    project(store_location, num_pairs=9).close()
    plant(store_location, "UPDATE pairs SET open_position = NULL", "UPDATE project SET num_open_pairs = 0")
    with open_store(store_location) as store:
        (problem,) = store.check()
    assert problem.startswith("9 pairs are open")
    assert problem.count("pair-") == 5
    assert problem.endswith(", ...")


def test_a_row_that_points_nowhere(tmp_path) -> None:
    file = tmp_path / "labels.sqlite"
    busy_project(str(file)).close()
    # Another program need not know that rows point to each other.
    connection = sqlite3.connect(file)
    connection.execute("DELETE FROM accounts WHERE name = 'Ben'")
    connection.commit()
    connection.close()
    with open_store(file) as store:
        assert any("points to a row of accounts" in problem for problem in store.check())
