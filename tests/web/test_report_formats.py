"""How figures are written: one hand-worked case per rule."""

import math
from typing import Any

import pytest

from prefloop.web.report_formats import (
    duration,
    group,
    groups,
    heading,
    number,
    number_interval,
    pair,
    percent,
    percent_interval,
    policy_name,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3072, "3,072"),
        (3.0, "3"),
        (0.5664, "0.566"),
        (12345.6, "12,346"),
        (-0.125, "\u22120.125"),
        (0.00012345, "0.000123"),
        (1.5e-05, "1.5e\u221205"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (True, "yes"),
        ("as it is", "as it is"),
        ([1], "–"),
    ],
)
def test_number(value: Any, text: str):
    assert number(value) == text


def test_percent_and_intervals():
    assert percent(0.9149) == "91.5\u00a0%"
    assert percent(0.9149, num_decimals=0) == "91\u00a0%"
    assert percent(None) == "–"
    assert percent_interval([0.88, 0.934]) == "[88.0 to 93.4]"
    assert percent_interval((0.88, 0.934), num_decimals=0) == "[88 to 93]"
    assert number_interval([-0.1, 0.25]) == "[\u22120.1 to 0.25]"
    for broken in (None, [], [0.1], [0.1, None], [0.1, math.nan], "ab", 0.5):
        assert percent_interval(broken) == number_interval(broken) == ""
        assert pair(broken) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (42, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (4320, "1 h 12 min"), (None, "–")],
)
def test_duration(seconds: float | None, text: str):
    assert duration(seconds).replace("\u00a0", " ") == text


def test_names():
    assert heading("evaluate/kl_policy_from_reference") == "Held-out KL policy from reference"
    assert heading("ppo_unguarded") == "PPO unguarded"
    assert policy_name("ppo_unguarded") == "PPO, unguarded"
    assert policy_name("my_own") == "My own"


def test_what_is_not_there_is_empty():
    assert group({"a": {"b": 1}}, "a") == {"b": 1}
    assert group({"a": [1]}, "a") == group({}, "a") == {}
    assert groups({"a": [{"b": 1}, 2]}, "a") == [{"b": 1}]
    assert groups({"a": {"b": 1}}, "a") == groups({}, "a") == []
