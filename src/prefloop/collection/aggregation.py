"""From several people's choices to one preference per pair, by majority or weighted by reliability."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from prefloop.collection.dawid_skene import dawid_skene
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice, Comparison, Label, PreferencePair

AggregationMethod = Literal["majority", "dawid_skene"]
TieRule = Literal["drop", "half"]
BothBadRule = Literal["drop", "tie"]

UNLABELLED = "nobody has chosen yet (no label, or skips only)"
NO_SIDE = "no label but ties or both bad"
TOO_FEW = "too few labels"
TIED = "tied"


@dataclass(frozen=True)
class Verdict:
    """What the labels of a comparison say: which side is better.

    `agreement`, in [0.5, 1], is the chosen side's share of the votes or, with reliabilities, its probability; a tie
    counts one half of either. `num_annotators` is the number of votes.
    """

    comparison: Comparison
    chosen: Literal["left", "right"]
    agreement: float
    num_annotators: int

    @property
    def pair(self) -> PreferencePair:
        chosen, rejected = self.comparison.left, self.comparison.right
        if self.chosen == "right":
            chosen, rejected = rejected, chosen
        return PreferencePair(
            self.comparison.prompt,
            chosen.text,
            rejected.text,
            agreement=self.agreement,
            num_annotators=self.num_annotators,
            chosen_ended=chosen.ended,
            rejected_ended=rejected.ended,
        )


@dataclass(frozen=True)
class Aggregation:
    """The verdicts in the order of the comparisons, and how many comparisons gave none, by reason.

    `reliability` is each annotator's probability of naming the better side (empty for a majority). `converged` is false
    where the search for reliabilities ran out of iterations.
    """

    verdicts: list[Verdict]
    dropped: dict[str, int]
    reliability: dict[str, float] = field(default_factory=dict)
    converged: bool = True

    @property
    def pairs(self) -> list[PreferencePair]:
        return [verdict.pair for verdict in self.verdicts]

    @property
    def num_tied(self) -> int:
        """Comparisons whose votes are evenly split (or most probably a tie)."""
        return self.dropped.get(TIED, 0)

    @property
    def num_unlabelled(self) -> int:
        """Comparisons without any label but skips."""
        return self.dropped.get(UNLABELLED, 0)


def aggregate(
    comparisons: Sequence[Comparison],
    labels: Iterable[Label],
    *,
    method: AggregationMethod = "majority",
    ties: TieRule = "half",
    both_bad: BothBadRule = "tie",
    min_annotators: int = 1,
) -> Aggregation:
    """One preference per comparison that has one.

    `labels` name the comparison's own sides, as `label_pairs` returns them. `ties` as "half" gives half a vote to each
    side, as "drop" no vote; `both_bad` prefers no side either: it counts as a tie or is dropped. Skips never count.
    With fewer than `min_annotators` votes there is no verdict, and none where the votes are exactly even.

    "dawid_skene" weighs annotators by a reliability learned from all the labels; a comparison that is most probably a
    tie then counts as tied. See `prefloop.collection.dawid_skene`.

    Raises DataError when a label has no comparison, or when an annotator labelled a pair twice; SettingsError for an
    unknown method or rule.
    """
    _check_settings(method, ties, both_bad, min_annotators)
    choices = _choices_of(comparisons, labels)
    voted = {pair_id: _votes(by_annotator, ties, both_bad) for pair_id, by_annotator in choices.items()}
    dropped: Counter[str] = Counter()
    usable: dict[str, dict[str, Choice]] = {}
    for comparison in comparisons:
        votes = voted.get(comparison.pair_id, {})
        if len(votes) >= min_annotators:
            usable[comparison.pair_id] = votes
        elif votes:
            dropped[TOO_FEW] += 1
        else:
            said = set(choices.get(comparison.pair_id, {}).values()) - {"skip"}
            dropped[NO_SIDE if said else UNLABELLED] += 1
    leads, reliability, converged = _leads(usable, method)
    verdicts: list[Verdict] = []
    for comparison in comparisons:
        lead = leads.get(comparison.pair_id)
        if lead:
            num_votes = len(usable[comparison.pair_id])
            verdicts.append(Verdict(comparison, "left" if lead > 0 else "right", (1 + abs(lead)) / 2, num_votes))
        elif lead == 0:
            dropped[TIED] += 1
    return Aggregation(verdicts, dict(dropped), reliability, converged)


def choices_by_pair(labels: Iterable[Label]) -> dict[str, dict[str, Choice]]:
    """The labels as pair_id -> annotator -> choice. Raises DataError when an annotator labelled a pair twice."""
    choices: defaultdict[str, dict[str, Choice]] = defaultdict(dict)
    for label in labels:
        if label.annotator in choices[label.pair_id]:
            raise DataError(
                f"Annotator {label.annotator!r} has two labels for pair {label.pair_id!r}. Keep one of them."
            )
        choices[label.pair_id][label.annotator] = label.choice
    return dict(choices)


def check_unique(what: str, names: Iterable[str]) -> None:
    """Raises DataError when a name occurs twice."""
    repeated = [name for name, num in Counter(names).items() if num > 1]
    if repeated:
        raise DataError(f"The {what} {repeated[0]!r} occurs more than once. Give each one a name of its own.")


def _choices_of(comparisons: Sequence[Comparison], labels: Iterable[Label]) -> dict[str, dict[str, Choice]]:
    check_unique("pair_id", (comparison.pair_id for comparison in comparisons))
    choices = choices_by_pair(labels)
    unknown = choices.keys() - {comparison.pair_id for comparison in comparisons}
    if unknown:
        raise DataError(
            f"{len(unknown)} labelled pairs are not among the {len(comparisons)} comparisons, for example "
            f"{min(unknown)!r}. Give the comparisons that were labelled."
        )
    return choices


def _votes(by_annotator: Mapping[str, Choice], ties: TieRule, both_bad: BothBadRule) -> dict[str, Choice]:
    """The labels that count, each left, right or tie."""
    votes: dict[str, Choice] = {}
    for annotator, choice in by_annotator.items():
        if choice == "both_bad" and both_bad == "tie":
            choice = "tie"
        if choice in ("left", "right") or (choice == "tie" and ties == "half"):
            votes[annotator] = choice
    return votes


def _leads(
    votes: Mapping[str, Mapping[str, Choice]], method: AggregationMethod
) -> tuple[dict[str, float], dict[str, float], bool]:
    """Left minus right by pair id, in [-1, 1], in votes or in probability; reliabilities; whether they converged."""
    if method == "majority" or not votes:
        return {pair_id: _lead_of_left(by_annotator) for pair_id, by_annotator in votes.items()}, {}, True
    model = dawid_skene(votes)
    leads = {
        pair_id: 0.0 if tie >= max(left, right) else left - right
        for pair_id, (left, right, tie) in model.posteriors.items()
    }
    return leads, model.reliability, model.converged


def _lead_of_left(by_annotator: Mapping[str, Choice]) -> float:
    said = list(by_annotator.values())
    return (said.count("left") - said.count("right")) / len(said)


def _check_settings(method: str, ties: str, both_bad: str, min_annotators: int) -> None:
    for name, value, allowed in (
        ("method", method, get_args(AggregationMethod)),
        ("ties", ties, get_args(TieRule)),
        ("both_bad", both_bad, get_args(BothBadRule)),
    ):
        if value not in allowed:
            raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
    if min_annotators < 1:
        raise SettingsError(f"min_annotators is {min_annotators}; it must be at least 1.")
