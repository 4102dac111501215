"""Everything a team wants to know about its labels: how many, how far people agree, and who may need a word.

Agreement, choices and consensus are from regular tasks. Gold pairs and repeats are for judging annotators only, by
accuracy and self-consistency; the side bias is from all tasks, because sides are drawn for each of them. Where the
times of a label are equal, as in imports without times, it has no duration; where they are 0, no place in time.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from prefloop.collection.aggregation import aggregate
from prefloop.collection.agreement import Interval
from prefloop.collection.agreement_figures import AgreementFigures, agreement_figures
from prefloop.collection.label_records import LabelEvent, StoredPair, TaskKind
from prefloop.errors import DataError
from prefloop.formulas.intervals import wilson_interval
from prefloop.records import Choice, Label

TOO_FAST_SECONDS = 2.0
ONE_SIDED_P_VALUE = 0.001
LOW_RATE = 0.6
ENOUGH_LABELS = 10


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % Wilson interval; both None without a trial. A tie may count one half."""

    num_successes: float
    num_trials: int
    rate: float | None
    ci95: Interval | None


@dataclass(frozen=True)
class SideBias:
    """How often the left side of the screen was chosen, among left and right, against one half.

    `p_value` is that of the two-sided exact binomial test; None without a choice of side.
    """

    left_as_displayed: Rate
    p_value: float | None


@dataclass(frozen=True)
class AnnotatorStatistics:
    """One annotator. `num_labels` are regular labels without skips; gold pairs and repeats are counted apart.

    `median_seconds` is from opening a pair to submitting its label, over all labels but skips. `consensus` is how often
    the annotator chose as the others did, where one choice of theirs is the most frequent. `gold` and
    `self_consistency` (the same text chosen again when the pair came back with its sides exchanged) leave out skips.
    """

    annotator: str
    num_labels: int
    num_skips: int
    num_gold_labels: int
    num_repeats: int
    median_seconds: float | None
    side_bias: SideBias
    consensus: Rate
    gold: Rate
    self_consistency: Rate


@dataclass(frozen=True)
class ResponseLengths:
    """Words of chosen and rejected answers, over the pairs whose majority prefers one.

    `edges` are the bounds of the histogram's bins, one more than bins; `chosen_longer` counts equal lengths one half.
    """

    num_pairs: int
    chosen_median_words: float | None
    rejected_median_words: float | None
    chosen_mean_words: float | None
    rejected_mean_words: float | None
    chosen_longer: Rate
    edges: list[float]
    chosen_histogram: list[int]
    rejected_histogram: list[int]


@dataclass(frozen=True)
class LabelsInTime:
    """Labels that the store received from `start` on (UTC, ISO 8601), for `seconds`."""

    start: str
    seconds: int
    num_labels: int


@dataclass(frozen=True)
class LabelStatistics:
    """All figures of a label project, plain enough for JSON by `dataclasses.asdict`.

    `num_pairs` leaves out gold pairs. `annotators_per_pair` counts regular pairs by their number of labels without
    skips. `choices` are of regular tasks by the pair's own sides, `displayed_choices` of all tasks by the screen's.
    """

    num_pairs: int
    num_gold_pairs: int
    num_pairs_labelled: int
    num_labels: int
    num_labels_by_kind: dict[str, int]
    num_annotators: int
    annotators_per_pair: dict[int, int]
    mean_annotators_per_pair: float | None
    choices: dict[str, int]
    displayed_choices: dict[str, int]
    agreement: AgreementFigures
    side_bias: SideBias
    annotators: list[AnnotatorStatistics]
    response_lengths: ResponseLengths
    labels_in_time: list[LabelsInTime]
    warnings: list[str]


def label_statistics(
    pairs: Sequence[StoredPair], labels: Sequence[LabelEvent], *, seed: int, num_resamples: int = 1000
) -> LabelStatistics:
    """The statistics of the current labels (no undone ones) of a project; the seed draws the bootstrap's pairs.

    Figures that do not exist yet are None, never NaN. Raises DataError for a label without a pair, a gold label of a
    pair without a known answer, an "undo" event, or two labels of one annotator for one pair in one kind of task.
    """
    pair_of = {pair.comparison.pair_id: pair for pair in pairs}
    _check(pair_of, labels)
    regular = regular_labels(labels)
    choices_of: defaultdict[str, dict[str, Choice]] = defaultdict(dict)
    for label in regular:
        if label.choice != "skip":
            choices_of[label.pair_id][label.annotator] = label.choice
    agreement = agreement_figures(regular, seed, num_resamples=num_resamples)
    annotators = _annotators(pair_of, labels, choices_of)
    num_gold_pairs = sum(pair.gold_choice is not None for pair in pairs)
    regular_pairs = [pair for pair in pairs if pair.gold_choice is None or pair.comparison.pair_id in choices_of]
    num_labels = sum(map(len, choices_of.values()))
    return LabelStatistics(
        num_pairs=len(pairs) - num_gold_pairs,
        num_gold_pairs=num_gold_pairs,
        num_pairs_labelled=len(choices_of),
        num_labels=num_labels,
        num_labels_by_kind=_counted((label.kind for label in labels), ("regular", "gold", "repeat")),
        num_annotators=len(annotators),
        annotators_per_pair=dict(
            sorted(Counter(len(choices_of.get(pair.comparison.pair_id, {})) for pair in regular_pairs).items())
        ),
        mean_annotators_per_pair=num_labels / len(choices_of) if choices_of else None,
        choices=_counted((label.choice for label in regular), _ALL_CHOICES),
        displayed_choices=_counted((label.displayed_choice for label in labels), _ALL_CHOICES),
        agreement=agreement,
        side_bias=_side_bias(labels),
        annotators=annotators,
        response_lengths=_response_lengths(pairs, regular),
        labels_in_time=_labels_in_time(labels),
        warnings=[*_agreement_warnings(agreement), *(text for one in annotators for text in _warnings(one))],
    )


def regular_labels(labels: Iterable[LabelEvent]) -> list[Label]:
    """The labels of regular tasks, by the pair's own sides: those that agreement and preferences are made from."""
    return [
        Label(label.pair_id, label.annotator, label.choice)
        for label in labels
        if label.kind == "regular" and label.choice is not None
    ]


_ALL_CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both_bad", "skip")


def _check(pair_of: Mapping[str, StoredPair], labels: Sequence[LabelEvent]) -> None:
    seen: set[tuple[str, str, TaskKind]] = set()
    for label in labels:
        what = f"The label of {label.annotator!r} on pair {label.pair_id!r}"
        if label.event != "label" or label.choice is None:
            raise DataError(f"{what} is an undo event. Give the current labels, not the record of events.")
        if label.pair_id not in pair_of:
            raise DataError(f"{what} has no pair among the {len(pair_of)} given. Give all pairs of the project.")
        if label.kind == "gold" and pair_of[label.pair_id].gold_choice is None:
            raise DataError(
                f"{what} is of a gold task, and the pair has no known answer. Give the pair its gold_choice."
            )
        key = label.pair_id, label.annotator, label.kind
        if key in seen:
            raise DataError(f"{what} exists twice as a {label.kind} task. Give the current labels only.")
        seen.add(key)


def _counted(values: Iterable[str | None], names: Sequence[str]) -> dict[str, int]:
    counts = Counter(values)
    return {name: counts[name] for name in names}


def _rate(num_successes: float, num_trials: int) -> Rate:
    if not num_trials:
        return Rate(num_successes, 0, None, None)
    return Rate(num_successes, num_trials, num_successes / num_trials, wilson_interval(num_successes, num_trials))


def _rate_of(successes: Sequence[bool]) -> Rate:
    return _rate(sum(successes), len(successes))


def _side_bias(labels: Iterable[LabelEvent]) -> SideBias:
    from scipy.stats import binomtest  # Takes half a second to load.

    sides = [label.displayed_choice for label in labels if label.displayed_choice in ("left", "right")]
    left = _rate(sides.count("left"), len(sides))
    return SideBias(left, float(binomtest(sides.count("left"), len(sides), 0.5).pvalue) if sides else None)


# --- annotators -----------------------------------------------------------------------------------------------------


def _annotators(
    pair_of: Mapping[str, StoredPair],
    labels: Sequence[LabelEvent],
    choices_of: Mapping[str, Mapping[str, Choice]],
) -> list[AnnotatorStatistics]:
    labels_of: defaultdict[str, list[LabelEvent]] = defaultdict(list)
    for label in labels:
        labels_of[label.annotator].append(label)
    return [_annotator(name, pair_of, labels_of[name], choices_of) for name in sorted(labels_of)]


def _annotator(
    name: str,
    pair_of: Mapping[str, StoredPair],
    labels: Sequence[LabelEvent],
    choices_of: Mapping[str, Mapping[str, Choice]],
) -> AnnotatorStatistics:
    said = [label for label in labels if label.choice != "skip"]
    first_choice = {label.pair_id: label.choice for label in said if label.kind == "regular"}
    gold = [label for label in said if label.kind == "gold"]
    repeats = [label for label in said if label.kind == "repeat"]
    seconds = [label.submitted_at - label.opened_at for label in said if label.submitted_at > label.opened_at]
    consensus = {pair_id: _consensus_without(name, choices_of[pair_id]) for pair_id in first_choice}
    return AnnotatorStatistics(
        annotator=name,
        num_labels=len(first_choice),
        num_skips=len(labels) - len(said),
        num_gold_labels=len(gold),
        num_repeats=len(repeats),
        median_seconds=statistics.median(seconds) if seconds else None,
        side_bias=_side_bias(labels),
        consensus=_rate_of([choice == consensus[pair] for pair, choice in first_choice.items() if consensus[pair]]),
        gold=_rate_of([label.choice == pair_of[label.pair_id].gold_choice for label in gold]),
        self_consistency=_rate_of(
            [label.choice == first_choice[label.pair_id] for label in repeats if label.pair_id in first_choice]
        ),
    )


def _consensus_without(name: str, by_annotator: Mapping[str, Choice]) -> Choice | None:
    """The others' most frequent choice; None without others, or where two choices are equally frequent."""
    others: Counter[Choice] = Counter(choice for other, choice in by_annotator.items() if other != name)
    ranked = others.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _agreement_warnings(agreement: AgreementFigures) -> list[str]:
    alpha = agreement.krippendorff_alpha_nominal
    if alpha.value is None or alpha.ci95 is None or alpha.num_pairs < ENOUGH_LABELS or alpha.ci95[0] > 0:
        return []
    low, high = alpha.ci95
    return [
        f"People agree no better than chance as far as these labels show (alpha {alpha.value:.2f}, between {low:.2f} "
        f"and {high:.2f}). Look at some pairs together and sharpen the guidelines before training on the labels."
    ]


def _warnings(one: AnnotatorStatistics) -> list[str]:
    found: list[str] = []
    all_labels = one.num_labels + one.num_gold_labels + one.num_repeats
    if one.median_seconds is not None and one.median_seconds < TOO_FAST_SECONDS and all_labels >= ENOUGH_LABELS:
        found.append(
            f"{one.annotator} needs {one.median_seconds:.1f} seconds for a pair (median of {all_labels} labels), which "
            "is too fast to read two answers."
        )
    left, p_value = one.side_bias.left_as_displayed, one.side_bias.p_value
    if left.rate is not None and p_value is not None and p_value < ONE_SIDED_P_VALUE:
        side, share = ("left", left.rate) if left.rate > 0.5 else ("right", 1 - left.rate)
        found.append(
            f"{one.annotator} chose the {side} side in {share:.0%} of {left.num_trials} choices. Sides are drawn by "
            f"lot, so it should be about half (p = {p_value:.1g})."
        )
    for rate, what in (
        (one.gold, "the known answer on {} of {} gold pairs"),
        (one.self_consistency, "the same answer again on {} of {} pairs that came back with the sides exchanged"),
    ):
        if rate.rate is not None and rate.rate < LOW_RATE and rate.num_trials >= ENOUGH_LABELS:
            counted = what.format(int(rate.num_successes), rate.num_trials)
            found.append(f"{one.annotator} chose {counted} ({rate.rate:.0%}).")
    rate = one.consensus
    if rate.rate is not None and rate.ci95 is not None and rate.num_trials >= ENOUGH_LABELS:
        near_a_coin = rate.rate < LOW_RATE and rate.ci95[0] <= 0.5
        if near_a_coin:
            found.append(
                f"{one.annotator} agrees with the others' majority on {rate.rate:.0%} of {rate.num_trials} pairs, "
                "hardly more than a coin would."
            )
    return found


# --- lengths and time -----------------------------------------------------------------------------------------------


def _response_lengths(pairs: Sequence[StoredPair], labels: Sequence[Label], *, num_bins: int = 20) -> ResponseLengths:
    preferred = aggregate([pair.comparison for pair in pairs], labels).pairs
    chosen = np.array([len(pair.chosen.split()) for pair in preferred], dtype=np.float64)
    rejected = np.array([len(pair.rejected.split()) for pair in preferred], dtype=np.float64)
    longer = _rate(float((chosen > rejected).sum() + (chosen == rejected).sum() / 2), len(preferred))
    if not preferred:
        return ResponseLengths(0, None, None, None, None, longer, [], [], [])
    longest = max(chosen.max(), rejected.max())
    edges = np.linspace(0, max(longest, num_bins), num_bins + 1)
    return ResponseLengths(
        num_pairs=len(preferred),
        chosen_median_words=float(np.median(chosen)),
        rejected_median_words=float(np.median(rejected)),
        chosen_mean_words=float(chosen.mean()),
        rejected_mean_words=float(rejected.mean()),
        chosen_longer=longer,
        edges=edges.tolist(),
        chosen_histogram=np.histogram(chosen, edges)[0].tolist(),
        rejected_histogram=np.histogram(rejected, edges)[0].tolist(),
    )


_HOUR, _DAY = 3600, 86_400


def _labels_in_time(labels: Iterable[LabelEvent]) -> list[LabelsInTime]:
    """Counts by hour for up to three days, by day for up to a year, else by 30 days; empty stretches included."""
    times = [label.received_at for label in labels if label.received_at > 0]
    if not times:
        return []
    span = max(times) - min(times)
    width = _HOUR if span <= 3 * _DAY else _DAY if span <= 366 * _DAY else 30 * _DAY
    counts = Counter(int(time // width) for time in times)
    return [
        LabelsInTime(datetime.fromtimestamp(bucket * width, UTC).isoformat(), width, counts[bucket])
        for bucket in range(min(counts), max(counts) + 1)
    ]
