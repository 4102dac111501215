"""Which pairs come first: at random, where a reward model is least sure, or where an ensemble disagrees most.

Asking where a model is unsure can save labels, and it bends every figure measured on those labels. So a share of the
pairs, drawn from all of them alike, keeps random places; the two kinds alternate evenly, so that the random share is
there at whatever point people stop.
"""

import math
from collections.abc import Sequence

from prefloop.collection.label_records import ChosenBy, ProjectSettings, StoredPair
from prefloop.randomness import permutation


def queue_order(
    pairs: Sequence[StoredPair], settings: ProjectSettings, *, batch: int = 0
) -> list[tuple[int, ChosenBy]]:
    """The pairs' indices, first to be asked first, each with what gave it its place.

    Of any first m places at least random_share x m are random ones. Pairs with a known answer, and pairs without the
    number that orders the others, are random. Every draw depends on the seed and `batch` alone.
    """
    shuffled = permutation(settings.seed, "queue order", batch, length=len(pairs))
    golds = [index for index in shuffled if pairs[index].gold_choice is not None]
    regular = [index for index in shuffled if pairs[index].gold_choice is None]
    num_random = math.ceil(settings.random_share * len(regular))
    drawn, others = regular[:num_random], regular[num_random:]
    ranked = [index for index in others if _rank(pairs[index], settings) is not None]
    ranked.sort(key=lambda index: _rank(pairs[index], settings) or 0.0)
    chosen = set(ranked)
    at_random = iter([index for index in drawn + others if index not in chosen])
    num_at_random = len(regular) - len(ranked)
    in_order = iter(ranked)
    order: list[tuple[int, ChosenBy]] = []
    for place in range(len(regular)):
        # The random ones among the first m places are ceil(m x num_at_random / all), in whole numbers.
        if -(-(place + 1) * num_at_random // len(regular)) > -(-place * num_at_random // len(regular)):
            order.append((next(at_random), "random"))
        else:
            order.append((next(in_order), settings.order))
    return order + [(index, "random") for index in golds]


def _rank(pair: StoredPair, settings: ProjectSettings) -> float | None:
    """Smallest first; None for a pair without a rank."""
    if settings.order == "margin" and pair.margin is not None:
        return abs(pair.margin)
    if settings.order == "disagreement" and pair.disagreement is not None:
        return -pair.disagreement
    return None
