"""The short form of `make stress`: a few clients and kills on each database, judged by the same code."""

from dataclasses import replace
from pathlib import Path

from stress.label_server import Plan, stress_label_server, table

SHORT = Plan(
    num_clients=6,
    num_kills=3,
    num_pairs=600,
    num_gold_pairs=10,
    lease_seconds=1.0,
    open_throttle_seconds=0.8,
    steady_seconds=0.8,
    steady_labels_per_second=30.0,
    longest_round_seconds=0.6,
)


def test_kills_lose_nothing_and_double_nothing(store_location: str, tmp_path: Path) -> None:
    measured = stress_label_server(store_location, tmp_path, plan=SHORT)
    assert measured.violations == [], table(measured, SHORT)
    # One more kill ends the run; and without work in between, kills prove nothing.
    assert measured.num_kills == SHORT.num_kills + 1
    assert measured.num_retries > SHORT.num_kills
    assert measured.findings.num_acknowledged > 100
    assert measured.num_events >= measured.findings.num_acknowledged


def test_a_server_that_acknowledges_before_the_commit_is_caught(tmp_path: Path) -> None:
    plan = replace(SHORT, num_kills=2, steady_seconds=0.1)
    measured = stress_label_server(
        str(tmp_path / "labels.sqlite"), tmp_path, plan=plan, module="tests.stress.hasty_server"
    )
    assert measured.findings.lost
    assert "lost" in table(measured, plan)
