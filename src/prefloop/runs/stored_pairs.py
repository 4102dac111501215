"""From a run that collected pairs to the pairs of a label project."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefloop.collection.label_records import StoredPair
from prefloop.records import Comparison
from prefloop.runs.folder import RunFolder
from prefloop.runs.stages_data import read_comparisons


def stored_pairs(folder: Path) -> list[StoredPair]:
    """The pairs in a `collect` stage's folder, with margin and disagreement where reward models scored them.

    Their ids begin with the run's, so that pairs of several runs can meet in one project. Pairs that cannot be shown
    (see `showable`) are left out.
    """
    run = RunFolder(folder).run_id
    return [
        StoredPair(
            replace(one, pair_id=f"{run[:8]}-{one.pair_id}"),
            margin=one.details.get("margin"),
            disagreement=one.details.get("disagreement"),
        )
        for one in showable(read_comparisons(str(folder / "comparisons.jsonl")))
    ]


def showable(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those with two answers to read: a model may end at once, and nobody can compare with an empty side."""
    return [one for one in comparisons if one.left.text.strip() and one.right.text.strip()]
