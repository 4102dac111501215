"""The verdict and the tables, from figures that are written out here."""

from typing import Any

import pytest

from prefloop.web.report_blocks import (
    accuracy_chart,
    annotator_table,
    calibration_of,
    flaw_table,
    policy_table,
    reward_models_table,
    samples_over_time,
    text_table,
    verdict,
    verdict_note,
)


def rated(rate: float | None, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"success_rate": rate, "ci95": [low, high], "n": 600, **more}


def said(policies: dict[str, Any]) -> str | None:
    text = verdict(policies)
    return text and text.replace("\u00a0", " ")


def test_the_verdict_compares_the_trained_policy_with_its_start():
    policies = {"sft": rated(0.47, 0.43, 0.51), "dpo": rated(0.83, 0.8, 0.86), "ppo": rated(0.914, 0.88, 0.93)}
    assert said(policies) == (
        "PPO answers 91 % of 600 held-out prompts well [88 to 93], the imitator it started from 47 % [43 to 51]."
    )
    del policies["ppo"]
    assert (said(policies) or "").startswith("DPO answers 83 %")


def test_the_verdict_speaks_of_flaws_only_where_flaws_were_counted():
    assert "without a flaw" in (said({"ppo": rated(0.9, 0.88, 0.93, flaws={"filler": 0.1})}) or "")
    assert said({"ppo": rated(0.9, 0.88, 0.93)}) == "PPO answers 90 % of 600 held-out prompts well [88 to 93]."


def test_the_verdict_says_what_a_win_is_against():
    said_of_wins = said({"ppo": rated(0.6, 0.55, 0.65, is_win_rate=True)})
    assert said_of_wins == (
        "PPO answers 60 % of 600 held-out prompts better than other answers of the imitator [55 to 65]."
    )


@pytest.mark.parametrize("policies", [{}, {"sft": rated(0.5, 0.4, 0.6)}, {"ppo": rated(None, 0, 1)}])
def test_no_verdict_without_a_trained_policy_that_was_measured(policies: dict[str, Any]):
    assert verdict(policies) is None
    assert verdict_note(policies) is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.52, 0.6, "The 95 % intervals do not overlap."),
        (0.5, 0.6, "no proof of a difference"),
        (0.44, 0.5, "no proof of a difference"),
        (0.2, 0.3, "worse than what it started from"),
    ],
)
def test_the_note_says_what_the_intervals_allow(low: float, high: float, words: str):
    note = verdict_note({"sft": rated(0.47, 0.43, 0.51), "ppo": rated((low + high) / 2, low, high)})
    assert note is not None
    assert words in note


def test_an_amount_that_all_share_stands_once():
    shared = policy_table({"sft": rated(0.5, 0.4, 0.6, judged_by="the rubric"), "ppo": rated(0.9, 0.8, 1.0)})
    assert shared.caption == "The same 600 held-out prompts for every policy, judged by the rubric"
    assert shared.columns == ("Policy", "Success", "95 % interval", "KL, nats")
    different = policy_table({"sft": rated(0.5, 0.4, 0.6), "ppo": {**rated(0.9, 0.8, 1.0), "n": 300}})
    assert different.columns[3] == "n"
    assert [row[3] for row in different.rows] == ["600", "300"]
    assert all(len(row) == len(different.columns) for row in different.rows)


def test_best_of_n_says_of_how_many_and_that_its_distance_is_a_bound():
    bound = rated(0.7, 0.6, 0.8, n_candidates=4, kl_from_reference=0.64, kl_is_bound=True, second_judge_rate=0.66)
    table = policy_table({"best_of_n": bound, "ppo": rated(0.9, 0.8, 1.0, kl_from_reference=3.0)})
    assert table.columns == ("Policy", "Success", "95 % interval", "Second judge", "KL, nats")
    assert table.rows[0] == ("Best of 4", "70.0\u00a0%", "[60.0 to 80.0]", "66.0\u00a0%", "≤ 0.64")
    assert table.rows[1] == ("PPO", "90.0\u00a0%", "[80.0 to 100.0]", "–", "3")


def test_columns_that_nobody_measured_are_left_out():
    table = text_table({"sft": {"median_words": 61}, "ppo": {"median_words": None, "distinct_2": 0.3}})
    assert table is not None
    assert table.columns == ("Policy", "Median words", "Distinct-2")
    assert table.rows == (("SFT", "61", "–"), ("PPO", "–", "0.3"))
    assert text_table({"sft": {}}) is None


def test_flaws_of_all_policies_share_a_table():
    table = flaw_table({"sft": {"flaws": {"filler": 0.2}}, "dpo": {}, "ppo": {"flaws": {"wrong_order": 0.01}}})
    assert table is not None
    assert table.columns == ("Flaw", "SFT", "PPO")
    assert [tuple(cell.replace("\u00a0", " ") for cell in row) for row in table.rows] == [
        ("Filler", "20.0 %", "0.0 %"),
        ("Wrong order", "0.0 %", "1.0 %"),
    ]


def test_annotators_show_shares_as_percent_and_counts_as_counts():
    table = annotator_table({"per_annotator": {"ada": {"num_labels": 3072, "left_share": 0.5, "times": [1]}}})
    assert table is not None
    assert table.columns == ("Annotator", "Labels", "Chose the left side")
    assert table.rows == (("ada", "3,072", "50.0\u00a0%"),)


def test_baselines_may_be_numbers_or_records():
    plain = accuracy_chart({"accuracy": 0.8, "bag_of_words_accuracy": 0.7})
    record = accuracy_chart({"accuracy": 0.8, "bag_of_words_accuracy": {"accuracy": 0.7}})
    assert plain == record
    assert "Bag of words 70\u00a0%" in str(plain)
    assert accuracy_chart({"bag_of_words_accuracy": 0.7}) is None


def test_calibration_bins_may_be_lists_or_records():
    lists = calibration_of({"calibration": [[0.2, 0.25, 10], [0.8, 0.7, 20]]})
    records = calibration_of(
        {
            "calibration": [
                {"mean_predicted": 0.2, "observed_share": 0.25, "count": 10},
                {"mean_predicted": 0.8, "observed_share": 0.7, "count": 20},
            ]
        }
    )
    assert lists == records
    assert "predicted 20\u00a0%, came true 25\u00a0%" in str(lists)
    for missing in (None, [], [[0.1, None, 3]], 7):
        assert calibration_of({"calibration": missing}) is None


def test_samples_over_time_keep_the_first_and_the_last_of_each_prompt():
    def row(step: int, prompt: str, kind: str = "evaluate") -> dict[str, Any]:
        completion = f"{prompt} {step}"
        return {"step": step, "kind": kind, "prompt": prompt, "completion": completion, "details": {"score": step}}

    rows = [row(0, "a"), row(0, "b"), row(5, "a"), row(9, "a"), row(9, "c", "train")]
    first, second = samples_over_time(rows)
    assert [answer.text for answer in first.answers] == ["a 0", "a 9"]
    assert [answer.title for answer in first.answers] == ["Step 0", "Step 9"]
    assert first.answers[1].facts == "score 9"
    assert [answer.text for answer in second.answers] == ["b 0"]


def test_reward_models_that_are_reported_elsewhere_stand_in_a_table_of_their_own():
    figures = {"auc_concordance": 0.625, "accuracy_ci95": [0.5, 0.75], "n": 80}
    table = reward_models_table({"reward_models": {"round 1": figures, "broken": "text"}})
    assert table is not None
    assert [row[0] for row in table.rows] == ["round 1"]
    assert table.rows[0][1].startswith("62.5")
    assert table.rows[0][3] == "80"
    assert reward_models_table({}) is None
