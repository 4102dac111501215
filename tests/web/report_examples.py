"""A pipeline's folder and a single run's folder as training leaves them, with texts that try to break out."""

import json
import math
from pathlib import Path
from typing import Any

from prefloop.runs.folder import Parent, RunFolder

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)></style>\"><a href='javascript:alert(3)'>$x_{1}$</a>"

ALARMS: list[dict[str, Any]] = [
    {"stage": "ppo_unguarded", "step": 16, "message": "The score rose to 3.10 while the judge fell to 63 %."}
]
SUMMARY: dict[str, Any] = {
    "dataset": {
        "pairs": 3072,
        "annotators_per_pair": 3.0,
        "agreement_rate": 0.784,
        "agreement_rate_ci95": [0.771, 0.797],
        "krippendorff_alpha": 0.566,
        "krippendorff_alpha_ci95": [0.541, 0.592],
        "rounds": [
            {"round": 1, "pairs": 2048, "annotators_per_pair": 3.0, "agreement_rate": 0.79, "krippendorff_alpha": 0.58},
            {"round": 2, "pairs": 1024, "annotators_per_pair": 3.0, "agreement_rate": 0.77, "krippendorff_alpha": None},
        ],
        "per_annotator": {
            "ada": {"num_labels": 3072, "num_skips": 0, "left_share": 0.502, "agreement_with_others": 0.79},
            "blaise": {"num_labels": 3050, "num_skips": 22, "left_share": 0.551, "agreement_with_others": 0.76},
        },
    },
    "reward_model": {
        "accuracy": 0.842,
        "accuracy_ci95": [0.819, 0.864],
        "auc_concordance": 0.842,
        "auc_oriented": 0.921,
        "auc_pooled": 0.874,
        "n": 1024,
        "brier": 0.112,
        "expected_calibration_error": 0.031,
        "calibration": [[0.05 + 0.1 * k, 0.03 + 0.105 * k, 80 + 20 * (k % 4)] for k in range(10)],
        "length_only_accuracy": 0.561,
        "bag_of_words_accuracy": {"accuracy": 0.702, "accuracy_ci95": [0.673, 0.73]},
        "accuracy_ceiling": 0.877,
        "against": "the gold order",
    },
    "policies": {
        "sft": {
            "success_rate": 0.47,
            "ci95": [0.43, 0.51],
            "n": 600,
            "kl_from_reference": 0.0,
            "mean_response_tokens": 19.4,
            "distinct_2": 0.41,
            "unique_share": 0.98,
            "median_words": 61,
            "mean_score": -0.12,
            "judged_by": "the rubric",
            "flaws": {"missing_step": 0.21, "wrong_order": 0.13, "filler": 0.19},
        },
        "best_of_n": {
            "success_rate": 0.74,
            "ci95": [0.7, 0.77],
            "n": 600,
            "kl_from_reference": 1.9,
            "kl_is_bound": True,
            "n_candidates": 16,
            "mean_score": 1.31,
            "mean_response_tokens": 18.0,
            "distinct_2": 0.4,
            "unique_share": 0.97,
            "median_words": 58,
            "judged_by": "the rubric",
            "flaws": {"missing_step": 0.11, "wrong_order": 0.06, "filler": 0.09},
        },
        "dpo": {
            "success_rate": 0.83,
            "ci95": [0.8, 0.86],
            "n": 600,
            "kl_from_reference": 7.4,
            "mean_response_tokens": 16.9,
            "distinct_2": 0.37,
            "unique_share": 0.94,
            "median_words": 54,
            "mean_score": 1.72,
            "judged_by": "the rubric",
            "flaws": {"missing_step": 0.08, "wrong_order": 0.04, "filler": 0.05},
        },
        "ppo": {
            "success_rate": 0.91,
            "ci95": [0.88, 0.93],
            "n": 600,
            "kl_from_reference": 9.2,
            "mean_response_tokens": 16.2,
            "distinct_2": 0.36,
            "unique_share": 0.93,
            "median_words": 52,
            "mean_score": 2.2,
            "judged_by": "the rubric",
            "flaws": {"missing_step": 0.05, "wrong_order": 0.02, "filler": 0.02},
        },
        "ppo_unguarded": {
            "success_rate": 0.63,
            "ci95": [0.59, 0.67],
            "n": 600,
            "kl_from_reference": 41.0,
            "mean_response_tokens": 9.0,
            "distinct_2": 0.08,
            "unique_share": 0.22,
            "median_words": 31,
            "mean_score": None,
            "judged_by": "the rubric",
            "flaws": {"missing_step": 0.35, "wrong_order": 0.01},
        },
    },
    "wall_seconds": {"sft": 61.0},
    "alarms": ALARMS,
    "samples": [
        {
            "prompt": f"How do I repot a fern without hurting it? ({number})",
            "answers": {
                "sft": {
                    "text": "1. Take a pot.\n2. Water it.\n3. Done, as everyone knows, of course, naturally.",
                    "success": False,
                    "score": -0.4,
                },
                "ppo": {
                    "text": "1. Water the fern the day before.\n2. Choose a pot one size larger, with holes.\n"
                    "3. Loosen the roots gently.\n4. Fill in fresh soil and press it lightly.",
                    "success": True,
                    "score": 2.13,
                },
            },
        }
        for number in range(1, 7)
    ],
    "judge": {"name": "the rubric", "exact": True},
    "second_judge": {"name": "text classifier", "accuracy": 0.97, "ci95": [0.95, 0.98], "n": 400},
    "next_commands": ["prefloop chat runs/demo/ppo", "prefloop label runs/demo --port 8080"],
}

CONFIG = "algorithm:\n  name: ppo\n  kl_budget: 12.0\n  num_evaluation_samples: 128\n  learning_rate: 0.0002\n"


def write_stage(
    path: Path,
    algorithm: str,
    *,
    parents: tuple[Parent, ...] = (),
    rows: list[dict[str, Any]] | None = None,
    alarms: list[dict[str, Any]] | None = None,
) -> RunFolder:
    run = RunFolder.create(path, name=path.name, algorithm=algorithm, seed=7, parents=parents)
    run.write_config(CONFIG)
    for number, row in enumerate(rows if rows is not None else curve_rows()):
        run.append_metrics(row.get("step", number), {key: value for key, value in row.items() if key != "step"})
    audit = {"lines": ["3,072 rows read, 3,070 used, 2 dropped", "  dropped 2: longer than max_length"]}
    (path / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    if alarms:
        (path / "alarms.json").write_text(json.dumps(alarms), encoding="utf-8")
    run.mark("finished")
    return run


def curve_rows() -> list[dict[str, Any]]:
    """A loss that falls, with a held-out one beside it."""
    rows = []
    for step in range(0, 201, 2):
        loss = 0.9 + 2.4 * math.exp(-step / 40) + 0.05 * math.sin(step)
        row = {"step": step, "loss": loss, "accuracy": 1 - loss / 4, "gradient_norm": loss / 2, "seconds": 0.31}
        rows.append(row | ({"evaluate/loss": loss + 0.1 + step / 2000} if step % 40 == 0 else {}))
    return rows


def ppo_rows(*, turns_at: int) -> list[dict[str, Any]]:
    """A score that rises throughout and a judge that rises until `turns_at`."""
    rows: list[dict[str, Any]] = []
    for step in range(25):
        kl = 0.6 * step
        row = {"step": step, "score": 0.12 * step, "kl_policy_from_reference": kl, "entropy": 1.2 - step / 40}
        if step % 4 == 0:
            judge = 0.47 + 0.018 * min(step, turns_at) - 0.04 * max(0, step - turns_at)
            row |= {"evaluate/score": 0.13 * step, "evaluate/judge": judge, "evaluate/kl_policy_from_reference": kl}
        rows.append(row)
    return rows
