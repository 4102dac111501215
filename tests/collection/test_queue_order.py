"""The order of the queue, against a naive ranking."""

import math

import pytest
from small_projects import pair, settings

from prefloop.collection.queue_order import queue_order
from prefloop.collection.store import open_store


def test_by_hand() -> None:
    """Eight pairs, a quarter (two) random: places 1 and 5 of 8 are theirs, the others follow by size of the margin."""
    pairs = [pair(number, margin=margin) for number, margin in enumerate((5.0, -1.0, 0.5, -7.0, 2.0, 3.0, -4.0, 6.0))]
    order = queue_order(pairs, settings(order="margin"))
    assert [chosen_by for _, chosen_by in order] == ["random", *["margin"] * 3, "random", *["margin"] * 3]
    sizes = [abs(pairs[index].margin or 0.0) for index, chosen_by in order if chosen_by == "margin"]
    assert sizes == sorted(sizes)
    assert sorted(index for index, _ in order) == list(range(8))


@pytest.mark.parametrize("order", ["margin", "disagreement"])
@pytest.mark.parametrize("random_share", [0.25, 0.4, 1.0])
def test_every_beginning_of_the_queue_has_its_random_share(order: str, random_share: float) -> None:
    pairs = [pair(number, margin=(number * 37 % 101) - 50.0, disagreement=number * 53 % 97) for number in range(90)]
    rules = settings(order=order, random_share=random_share, seed=5)
    placed = queue_order(pairs, rules)
    at_random = [chosen_by == "random" for _, chosen_by in placed]
    for num in range(1, 91):
        assert random_share * num <= sum(at_random[:num]) + 1e-9 < random_share * num + 2
    assert sum(at_random) == math.ceil(random_share * 90)
    ranked = [pairs[index] for index, chosen_by in placed if chosen_by == order]
    key = {"margin": lambda one: abs(one.margin), "disagreement": lambda one: -one.disagreement}[order]
    assert ranked == sorted(ranked, key=key)


def test_the_random_ones_are_drawn_from_all_alike() -> None:
    """Over 400 seeds each of 8 pairs is random in a quarter: 100, standard deviation 8.7; within five of them."""
    pairs = [pair(number, margin=float(number)) for number in range(8)]
    times = [0] * 8
    for seed in range(400):
        for index, chosen_by in queue_order(pairs, settings(order="margin", seed=seed)):
            times[index] += chosen_by == "random"
    assert all(56 <= one <= 144 for one in times)


def test_pairs_without_the_number_and_gold_pairs_are_random() -> None:
    pairs = [pair(0), pair(1, gold_choice="left", margin=0.0), *(pair(n, margin=float(n)) for n in range(2, 10))]
    placed = dict(queue_order(pairs, settings(order="margin")))
    assert placed[0] == placed[1] == "random"
    assert sum(chosen_by == "random" for index, chosen_by in placed.items() if index > 1) in (2, 3)
    assert queue_order(pairs, settings(order="margin"))[-1] == (1, "random")


def test_a_random_order_is_random_throughout_and_changes_with_the_seed() -> None:
    pairs = [pair(number, margin=float(number)) for number in range(30)]
    orders = [queue_order(pairs, settings(seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert {chosen_by for _, chosen_by in orders[0]} == {"random"}
    assert [index for index, _ in orders[0]] != list(range(30))


def test_no_pairs() -> None:
    assert queue_order([], settings(order="margin")) == []


def test_the_store_asks_in_this_order_and_marks_it(store_location: str) -> None:
    rules = settings(order="disagreement", annotators_per_pair=1)
    pairs = [pair(number, disagreement=number / 7) for number in range(12)]
    with open_store(store_location, settings=rules) as store:
        store.add_pairs(pairs[:8])
        store.add_pairs(pairs[8:])
        store.add_account("Ada")
        first, second = queue_order(pairs[:8], rules), queue_order(pairs[8:], rules, batch=8)
        expected = [pairs[index] for index, _ in first] + [pairs[8 + index] for index, _ in second]
        chosen_by = [why for _, why in first + second]
        assert [one.comparison for one in store.pairs()] == [one.comparison for one in expected]
        assert [one.chosen_by for one in store.pairs()] == chosen_by
        asked = [task.pair_id for task in store.next_tasks("Ada", num=12)]
        assert asked == [one.comparison.pair_id for one in expected]
