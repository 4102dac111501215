import random

import pytest

from prefloop.data.splits import leakage, prompt_key, split_by_prompt
from prefloop.errors import SettingsError
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, TextExample

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def pairs(number):
    return [PreferencePair(f"prompt {index // 3}", f"a{index}", "b") for index in range(number)]


def test_all_rows_of_a_prompt_land_on_one_side():
    parts = split_by_prompt(pairs(3000), shares=SHARES, seed=0)
    assert sum(map(len, parts.values())) == 3000
    for first in parts:
        for second in parts:
            shared = {pair.prompt for pair in parts[first]} & {pair.prompt for pair in parts[second]}
            assert bool(shared) == (first == second)
            if first != second:
                assert leakage(parts[first], parts[second]) == 0


def test_parts_have_about_their_share():
    parts = split_by_prompt([TextExample(str(number)) for number in range(4000)], shares=SHARES, seed=1)
    # Four standard deviations of a binomial with n = 4000.
    assert len(parts["train"]) == pytest.approx(3200, abs=102)
    assert len(parts["test"]) == pytest.approx(400, abs=76)


def test_a_prompt_keeps_its_side_in_any_order_and_company():
    records = pairs(300)
    side = {pair: name for name, part in split_by_prompt(records, shares=SHARES, seed=3).items() for pair in part}
    shuffled = records[::2]
    random.Random(0).shuffle(shuffled)
    again = split_by_prompt(shuffled, shares=SHARES, seed=3)
    assert all(side[pair] == name for name, part in again.items() for pair in part)
    order = {pair: place for place, pair in enumerate(shuffled)}
    assert all([order[pair] for pair in part] == sorted(order[pair] for pair in part) for part in again.values())


def test_another_seed_splits_otherwise():
    first, second = (split_by_prompt(pairs(300), shares=SHARES, seed=seed)["train"] for seed in (0, 1))
    assert first != second


def test_one_part_takes_everything():
    assert split_by_prompt(pairs(9), shares={"all": 1.0}, seed=0) == {"all": pairs(9)}


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.2, "test": -0.2}, {"train": 1.0, "test": 0.0}])
def test_shares_must_be_positive_and_add_up_to_one(shares):
    with pytest.raises(SettingsError, match="positive and add up to 1"):
        split_by_prompt(pairs(3), shares=shares, seed=0)


def test_the_key_is_the_prompt_or_the_text():
    chat = (Message("user", "x"),)
    assert prompt_key(TextExample("x")) == prompt_key("x") == prompt_key(LabelledText("x", 1))
    assert prompt_key(LabelledText("y", 0, "x")) == prompt_key(Demonstration("x", "y")) == prompt_key("x")
    assert prompt_key(chat) == prompt_key(PreferencePair(chat, "a", "b")) != prompt_key("x")
    assert prompt_key(chat) != prompt_key((Message("system", "x"),))


def test_leakage_counts_distinct_prompts():
    train = [PreferencePair("p", "a", "b"), PreferencePair("p", "c", "d"), PreferencePair("q", "a", "b")]
    assert leakage(train, [Demonstration("p", "x"), Demonstration("p", "y"), Demonstration("r", "x")]) == 1
    assert leakage(train, train) == 2
