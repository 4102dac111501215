"""How good a policy is: successes with their interval, distance from the reference, length, diversity."""

from collections.abc import Hashable, Sequence
from statistics import median
from typing import Any

from prefloop.evaluation.text_statistics import distinct_n, rate_with_interval, unique_share, word_counts
from prefloop.formulas.intervals import cluster_bootstrap
from prefloop.records import Completion


def policy_figures(
    completions: Sequence[Completion],
    successes: Sequence[float],
    *,
    kl_per_sequence: Sequence[float] | None,
    scores: Sequence[float] | None,
    judged_by: str,
    prompts: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """The figures of one policy on n completions.

    success_rate with its 95 % interval (Wilson's; where several completions answer one of the `prompts`, a bootstrap
    over prompts) and n; kl_from_reference in nats per sequence, a mean of sampled values
    that may lie a little below 0 for a policy near its reference (None where sampling and scoring differ, as for greedy
    decoding); lengths in tokens and words; distinct_2 over all words; unique_share of the texts.
    """
    texts = [completion.text for completion in completions]
    rate = rate_with_interval(successes)
    ci95 = rate["ci95"]
    num_prompts = len(set(prompts)) if prompts is not None else None
    # One single prompt (the start token) is asked for independent samples; several that repeat rise and fall together.
    if prompts is not None and num_prompts is not None and 1 < num_prompts < len(prompts):
        ci95 = cluster_bootstrap(successes, prompts, seed=0)
    lengths = [len(completion.token_ids or ()) for completion in completions]
    return {
        "success_rate": rate["rate"],
        "ci95": ci95,
        "n": rate["n"],
        "num_prompts": num_prompts,
        "kl_from_reference": _mean(kl_per_sequence),
        "mean_response_tokens": _mean(lengths),
        "median_words": median(word_counts(texts)),
        "distinct_2": distinct_n(texts),
        "unique_share": unique_share(texts),
        "ended_share": _mean([float(completion.ended) for completion in completions]),
        "mean_score": _mean(scores),
        "judged_by": judged_by,
    }


def best_of(scores: Sequence[float], n: int) -> list[int]:
    """The place of the best score in every run of n; the first one where several are best.

    Raises ValueError unless the number of scores is a multiple of n.
    """
    if len(scores) % n:
        raise ValueError(f"{len(scores)} scores do not make whole groups of {n}")
    return [start + max(range(n), key=lambda place: scores[start + place]) for start in range(0, len(scores), n)]


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
