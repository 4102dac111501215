"""Who gets which pair: never too many, never twice, gold pairs and repeats at their rates, leases that run out."""

import itertools
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from small_projects import pair, project, settings, submission

from prefloop.collection.annotators import shows_swapped
from prefloop.collection.label_records import OwnProgress, Receipt, Task
from prefloop.collection.store import LabelStore, open_store
from prefloop.errors import DataError, LabelRefusedError
from prefloop.records import Choice


def test_pairs_come_in_the_queue_s_order_and_a_reload_shows_the_same(store_location: str) -> None:
    with project(store_location, num_pairs=6) as store:
        order = [one.comparison.pair_id for one in store.pairs()]
        first = store.next_tasks("Ada", num=2, now=100.0)
        assert [task.pair_id for task in first] == order[:2]
        soon = store.next_tasks("Ada", num=2, now=100.0 + store.settings.lease_seconds / 4)
        assert soon == first
        again = store.next_tasks("Ada", num=4, now=400.0)
        assert [task.pair_id for task in again] == order[:4]
        assert [task.task_id for task in again[:2]] == [task.task_id for task in first]
        assert {task.expires_at for task in first} == {100.0 + store.settings.lease_seconds}
        assert {task.expires_at for task in again} == {400.0 + store.settings.lease_seconds}
        assert store.next_tasks("Ada", num=1, now=410.0)[0].task_id == first[0].task_id
        assert store.next_tasks("Ada", num=0) == []


@pytest.mark.parametrize("num", [-1, 101])
def test_a_number_of_tasks_that_makes_no_sense(store_location: str, num: int) -> None:
    with project(store_location) as store, pytest.raises(DataError, match=f"{num} tasks at once"):
        store.next_tasks("Ada", num=num)


def test_a_task_shows_the_answers_as_drawn_and_no_names_of_models(store_location: str) -> None:
    with project(store_location, num_pairs=40) as store:
        pairs = {one.comparison.pair_id: one.comparison for one in store.pairs()}
        tasks = store.next_tasks("Ada", num=40)
        for task in tasks:
            shown = pairs[task.pair_id].swap() if task.swapped else pairs[task.pair_id]
            assert (task.displayed_left, task.displayed_right) == (shown.left.text, shown.right.text)
            assert "model" not in repr(task.for_page())
        assert {task.swapped for task in tasks} == {True, False}


def test_half_of_the_sides_are_exchanged_and_the_event_says_which(store_location: str) -> None:
    """Of 200 fair coins, 60 to 140 heads: more than five standard deviations (7.1) to both sides."""
    with project(store_location, num_pairs=100, people=("Ada", "Ben")) as store:
        tasks = [(name, task) for name in ("Ada", "Ben") for task in store.next_tasks(name, num=100)]
        assert 60 <= sum(task.swapped for _, task in tasks) <= 140
        assert all(task.swapped == shows_swapped(task.pair_id, name, seed=0) for name, task in tasks)
        for name, task in tasks[90:110]:
            store.submit(name, submission(task, "left"))
        by_task = {(name, task.pair_id): task.swapped for name, task in tasks}
        for event in store.events():
            assert event.swapped == by_task[event.annotator, event.pair_id]
            assert (event.displayed_choice, event.choice) == ("left", "right" if event.swapped else "left")


def test_no_more_people_than_a_pair_needs(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=2) as store:
        tasks = {name: store.next_tasks(name, now=100.0) for name in ("Ada", "Ben", "Cy")}
        assert [len(tasks[name]) for name in tasks] == [1, 1, 0]
        store.submit("Ada", submission(tasks["Ada"][0]), now=101.0)
        assert store.next_tasks("Cy", now=102.0) == []
        store.submit("Ben", submission(tasks["Ben"][0], "skip"), now=103.0)
        assert len(store.next_tasks("Cy", now=104.0)) == 1
        assert store.next_tasks("Ben", now=105.0) == []


def test_a_lease_that_runs_out_gives_the_pair_to_others(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1, lease_seconds=10.0) as store:
        (adas,) = store.next_tasks("Ada", now=100.0)
        assert store.next_tasks("Ben", now=109.9) == []
        (bens,) = store.next_tasks("Ben", now=110.0)
        assert bens.pair_id == adas.pair_id
        assert store.next_tasks("Ada", now=111.0) == []
        store.submit("Ben", submission(bens), now=112.0)
        with pytest.raises(LabelRefusedError) as problem:
            store.submit("Ada", submission(adas), now=113.0)
        assert problem.value.reason == "pair_complete"


def test_a_lapsed_task_may_come_back_to_the_same_person_as_it_was(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1, lease_seconds=10.0) as store:
        (first,) = store.next_tasks("Ada", now=100.0)
        (again,) = store.next_tasks("Ada", now=200.0)
        assert (again.task_id, again.swapped, again.expires_at) == (first.task_id, first.swapped, 210.0)


def test_a_lease_that_is_renewed_lives_on(store_location: str) -> None:
    with project(store_location, num_pairs=1, annotators_per_pair=1, lease_seconds=10.0) as store:
        for now in (100.0, 109.0, 118.0, 127.0):
            assert len(store.next_tasks("Ada", now=now)) == 1
        assert store.next_tasks("Ben", now=136.0) == []
        assert len(store.next_tasks("Ben", now=137.0)) == 1


def label_many(
    store: LabelStore, name: str, *, num: int, choices: tuple[Choice, ...] = ("left", "right")
) -> list[Task]:
    """Takes and answers tasks one by one."""
    done = []
    tasks = store.next_tasks(name)
    for number in range(num):
        done.append(tasks[0])
        _, tasks = store.submit_and_next(name, submission(tasks[0], choices[number % len(choices)]), num_next=1)
    return done


def test_gold_pairs_and_repeats_come_at_their_rates(store_location: str) -> None:
    """Of 240 tasks a fifth gold is 48 (standard deviation 6.2), a tenth repeats 24 (4.6): within four of them."""
    rules = settings(gold_share=0.2, repeat_share=0.1, annotators_per_pair=1)
    with open_store(store_location, settings=rules) as store:
        gold = [pair(1000 + number, gold_choice="left") for number in range(100)]
        store.add_pairs([pair(number) for number in range(300)] + gold)
        store.add_account("Ada")
        tasks = label_many(store, "Ada", num=240)
        kinds = Counter(task.kind for task in tasks)
        assert abs(kinds["gold"] - 48) <= 25
        assert abs(kinds["repeat"] - 24) <= 18
        assert {task.kind for task in tasks if task.pair_id >= "pair-1000"} == {"gold"}
        assert {task.kind for task in tasks if task.pair_id < "pair-1000"} == {"regular", "repeat"}
        once = Counter((task.pair_id, task.kind) for task in tasks)
        assert set(once.values()) == {1}
        first = {task.pair_id: (at, task.swapped) for at, task in enumerate(tasks) if task.kind == "regular"}
        for at, task in enumerate(tasks):
            if task.kind == "repeat":
                before, swapped = first[task.pair_id]
                assert at - before >= 5
                assert task.swapped is not swapped
        progress = store.progress()
        assert progress.num_labels == kinds["regular"] == progress.num_pairs_complete
        assert store.own_progress("Ada").num_done == 240
        assert store.check() == []
        assert {label.kind for label in store.current_labels()} == {"regular", "gold", "repeat"}


def test_what_is_left_does_not_tell_a_gold_pair_from_others(store_location: str) -> None:
    """Of 60 pairs with 20 % gold and 10 % repeats, 60 / 0.7 * 0.3 = 25.7 further tasks are to be expected: 90 in fives.

    To the end of the queue, the number that is left moves or stands still after a gold pair or repeat as it does after
    others, and is never 0 while a task is on the screen.
    """
    shares = settings(gold_share=0.2, repeat_share=0.1, annotators_per_pair=1)
    with open_store(store_location, settings=shares) as store:
        gold = [pair(1000 + number, gold_choice="left") for number in range(40)]
        store.add_pairs([pair(number) for number in range(60)] + gold)
        store.add_account("Ada")
        steps = defaultdict(Counter)
        before = store.own_progress("Ada")
        assert before == OwnProgress(0, 90, is_exact=False)
        while tasks := store.next_tasks("Ada", num=2):
            assert store.own_progress("Ada").num_left > 0
            store.submit("Ada", submission(tasks[0]))
            after = store.own_progress("Ada")
            assert after.num_done == before.num_done + 1
            steps[tasks[0].kind][before.num_left - after.num_left] += 1
            before = after
        assert before.num_left == 0
    assert set(steps) == {"gold", "repeat", "regular"}
    assert set(steps["regular"]) == {0, 5}
    assert set(steps["gold"]) | set(steps["repeat"]) <= {0, 5}
    # A number that stands still is the rule after any task.
    assert steps["regular"][0] > 2 * (steps["gold"][0] + steps["repeat"][0])


def test_only_as_many_gold_pairs_are_expected_as_there_are(store_location: str) -> None:
    shares = settings(gold_share=0.5, annotators_per_pair=1)
    with open_store(store_location, settings=shares) as store:
        store.add_pairs([pair(number) for number in range(30)])
        store.add_account("Ada")
        assert store.own_progress("Ada") == OwnProgress(0, 30, is_exact=True)
        store.add_pairs([pair(1000 + number, gold_choice="left") for number in range(2)])
        assert store.own_progress("Ada") == OwnProgress(0, 35, is_exact=False)


def test_repeats_are_of_pairs_where_a_side_was_chosen(store_location: str) -> None:
    with project(store_location, num_pairs=60, repeat_share=0.5) as store:
        choices: tuple[Choice, ...] = ("left", "tie", "skip", "both_bad")
        tasks = label_many(store, "Ada", num=40, choices=choices)
        sides = {task.pair_id for at, task in enumerate(tasks) if choices[at % 4] == "left"}
        repeated = {task.pair_id for task in tasks if task.kind == "repeat"}
        assert repeated
        assert repeated <= sides


def test_gold_goes_to_everybody_whatever_k_is(store_location: str) -> None:
    with open_store(store_location, settings=settings(gold_share=0.5, annotators_per_pair=1)) as store:
        store.add_pairs([pair(number) for number in range(30)] + [pair(1000, gold_choice="right")])
        for name in ("Ada", "Ben", "Cy"):
            store.add_account(name)
            tasks = label_many(store, name, num=10)
            assert [task.kind for task in tasks].count("gold") == 1
        assert store.progress().num_labels_wanted == 30
        assert store.check() == []


def test_without_regular_pairs_left_the_queue_ends_and_stays_ended(store_location: str) -> None:
    with open_store(store_location, settings=settings(gold_share=0.3, annotators_per_pair=1)) as store:
        store.add_pairs([pair(number) for number in range(5)] + [pair(1000 + n, gold_choice="left") for n in range(50)])
        store.add_account("Ada")
        while tasks := store.next_tasks("Ada"):
            store.submit("Ada", submission(tasks[0]))
        assert store.own_progress("Ada").num_left == 0
        assert store.next_tasks("Ada", num=10) == []


def test_the_draws_depend_on_seed_and_name_alone(tmp_path) -> None:
    def shown(file: str, *, seed: int, name: str) -> list[tuple[str, str, bool]]:
        with open_store(tmp_path / file, settings=settings(seed=seed, gold_share=0.2, repeat_share=0.2)) as store:
            store.add_pairs([pair(n) for n in range(40)] + [pair(1000 + n, gold_choice="left") for n in range(10)])
            store.add_account(name)
            return [(task.pair_id, task.kind, task.swapped) for task in label_many(store, name, num=30)]

    first = shown("a", seed=1, name="Ada")
    assert shown("b", seed=1, name="Ada") == first
    assert shown("c", seed=2, name="Ada") != first
    assert shown("d", seed=1, name="Ben") != first


class Crowd:
    """People who take, answer, change, skip and take back at random, on a clock that ticks with each act."""

    def __init__(self, stores: list[LabelStore], *, num_people: int) -> None:
        self.names = [f"Person {number}" for number in range(num_people)]
        for name in self.names:
            stores[0].add_account(name)
        self.stores = stores
        self.clock = itertools.count(1000)
        self.given: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self.problems: list[BaseException] = []
        self.refusals: Counter[str] = Counter()

    def work(self, number: int, *, num_acts: int) -> None:
        rng, store, name = random.Random(number), self.stores[number % len(self.stores)], self.names[number]
        held: list[Task] = []
        done: list[Task] = []
        try:
            for _ in range(num_acts):
                act = rng.random()
                if act < 0.45 or not held:
                    held = store.next_tasks(name, num=rng.randint(1, 3), now=next(self.clock))
                    self.given[name] |= {(task.pair_id, task.task_id) for task in held}
                elif act < 0.85:
                    task = held.pop(rng.randrange(len(held)))
                    self.refused(lambda: store.submit(name, self.say(task, rng), now=next(self.clock)))  # noqa: B023
                    done.append(task)
                elif act < 0.93 and done:
                    task = rng.choice(done)
                    self.refused(lambda: store.submit(name, self.say(task, rng), now=next(self.clock)))  # noqa: B023
                else:
                    self.refused(lambda: store.undo(name, f"undo-{rng.random()}", now=next(self.clock)))
        except BaseException as problem:
            self.problems.append(problem)

    def refused(self, act: Callable[[], object]) -> None:
        try:
            act()
        except LabelRefusedError as refusal:
            self.refusals[refusal.reason] += 1

    @staticmethod
    def say(task: Task, rng: random.Random):
        choice = rng.choice(("left", "left", "right", "right", "tie", "skip"))
        return submission(task, choice, submission_id=f"id-{rng.random()}")

    def run(self, *, num_acts: int) -> None:
        threads = [
            threading.Thread(target=self.work, args=(number,), kwargs={"num_acts": num_acts})
            for number in range(len(self.names))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120.0)
        assert not any(thread.is_alive() for thread in threads)
        assert self.problems == []


def test_a_crowd_never_overfills_a_pair_nor_sees_one_twice(store_location: str) -> None:
    """12 people on two connections, leases of 40 ticks: the record, read event by event, never has k + 1 labels."""
    k = 2
    rules = settings(annotators_per_pair=k, lease_seconds=40.0)
    with open_store(store_location, settings=rules) as store, open_store(store_location) as second:
        store.add_pairs([pair(number) for number in range(24)])
        crowd = Crowd([store, second], num_people=12)
        crowd.run(num_acts=40)
        assert crowd.refusals["pair_complete"] > 0
        standing: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for event in store.events():
            standing[event.pair_id].pop(event.annotator, None)
            if event.event == "label" and event.choice not in (None, "skip"):
                standing[event.pair_id][event.annotator] = str(event.choice)
            assert len(standing[event.pair_id]) <= k
        for given in crowd.given.values():
            assert len(given) == len({pair_id for pair_id, _ in given})
        assert store.check() == []
        drain(store, crowd)
        assert store.progress().num_pairs_complete == 24
        labels = Counter(label.pair_id for label in store.current_labels() if label.choice != "skip")
        assert set(labels.values()) == {k}
        assert store.check() == []


def drain(store: LabelStore, crowd: Crowd) -> None:
    """Everybody finishes what is left, long after all leases ran out."""
    for name in crowd.names:
        now = next(crowd.clock) + 1e6
        while tasks := store.next_tasks(name, num=3, now=now):
            for task in tasks:
                store.submit(name, submission(task, "left"), now=now)


def at_once(num: int, act: Callable[[int], object]) -> None:
    """`act` from as many threads, all let go at the same moment."""
    barrier = threading.Barrier(num)
    problems: list[BaseException] = []

    def wait_and_act(number: int) -> None:
        barrier.wait(timeout=60.0)
        try:
            act(number)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=wait_and_act, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    assert problems == []


def test_a_rush_for_one_free_place(store_location: str) -> None:
    """16 people ask at the same moment: exactly k of them get the only pair."""
    names = tuple(f"Person {number}" for number in range(16))
    with project(store_location, num_pairs=1, annotators_per_pair=3, people=names) as store:
        tasks: dict[int, list[Task]] = {}
        at_once(16, lambda number: tasks.update({number: store.next_tasks(names[number])}))
        assert sorted(len(tasks[number]) for number in tasks) == [0] * 13 + [1] * 3


def test_one_person_at_many_windows_holds_one_set_of_tasks(store_location: str) -> None:
    names = tuple(f"Person {number}" for number in range(6))
    with project(store_location, num_pairs=30, annotators_per_pair=6, people=names) as store:
        # Connections are made beforehand: making them would keep the windows apart.
        at_once(8, lambda _: time.sleep(0.1) if store.progress() else None)
        for name in names:
            tasks: list[list[Task]] = []
            at_once(8, lambda _: tasks.append(store.next_tasks(name, num=2, now=100.0)))  # noqa: B023
            assert len(tasks) == 8
            assert all(one == tasks[0] for one in tasks)
            said = submission(tasks[0][0])
            receipts: list[Receipt] = []
            at_once(8, lambda _: receipts.append(store.submit(name, said, now=101.0)))  # noqa: B023
            assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * 7
            second = tasks[0][1]
            at_once(4, lambda number: store.submit(name, submission(second, rationale=str(number)), now=102.0))  # noqa: B023
            revisions = [event.revision for event in store.events() if event.annotator == name]
            assert revisions == [1, 1, 2, 3, 4]
        assert store.check() == []
