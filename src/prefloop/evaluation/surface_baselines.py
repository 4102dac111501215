"""What surface features alone can tell about a preference: the floor below every reward model's accuracy."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from prefloop.errors import DataError
from prefloop.formulas.intervals import wilson_interval

TextPair = tuple[str, str]


@dataclass(frozen=True)
class BaselineAccuracy:
    """Share of test pairs a baseline gets right, ties as halves, with its 95 % Wilson interval.

    `rule` says in words what the baseline learned from the training pairs.
    """

    rule: str
    accuracy: float
    accuracy_ci95: tuple[float, float]
    num_ties: int
    n: int

    def to_json(self) -> dict[str, Any]:
        """The result as a dictionary that `json.dumps` accepts."""
        return asdict(self)


def length_only_accuracy(train_pairs: Sequence[TextPair], test_pairs: Sequence[TextPair]) -> BaselineAccuracy:
    """Accuracy of "the longer answer wins" or "the shorter answer wins", whichever fits the training pairs.

    Pairs are (chosen, rejected); length is counted in characters. When the training pairs are evenly split the rule is
    "longer". Raises DataError when either list is empty.

    Source: Singhal et al. (arXiv 2310.03716), on how much of a reward length explains.
    """
    _check_pairs(train_pairs, test_pairs)
    longer_wins = np.sign(_length_margins(train_pairs)).sum() >= 0
    margins = _length_margins(test_pairs)
    return _baseline("longer wins" if longer_wins else "shorter wins", margins if longer_wins else -margins)


def bag_of_words_accuracy(train_pairs: Sequence[TextPair], test_pairs: Sequence[TextPair]) -> BaselineAccuracy:
    """Accuracy of a logistic regression on the difference of the answers' TF-IDF vectors (words and word pairs).

    Pairs are (chosen, rejected). Every second training pair is shown the other way round and the model has no
    intercept, so it cannot learn a side. The vocabulary comes from the training pairs alone. Raises DataError without
    test pairs, with fewer than two training pairs, or when the training pairs hold no word.

    Source: Bradley and Terry (1952) with linear scores; TF-IDF: Sparck Jones (1972).
    """
    _check_pairs(train_pairs, test_pairs)
    if len(train_pairs) < 2:
        raise DataError("One training pair was given; the bag of words needs at least two.")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        vectorizer.fit([text for pair in train_pairs for text in pair])
    except ValueError as error:
        raise DataError(f"The {len(train_pairs)} training pairs hold no word of two letters or more.") from error
    first_wins = [row % 2 == 0 for row in range(len(train_pairs))]
    shown = [(a, b) if first else (b, a) for (a, b), first in zip(train_pairs, first_wins, strict=True)]
    classifier = LogisticRegression(fit_intercept=False, max_iter=1000)
    classifier.fit(_vector_difference(vectorizer, shown), first_wins)
    margins = np.asarray(classifier.decision_function(_vector_difference(vectorizer, test_pairs)))
    return _baseline(f"logistic regression on {len(vectorizer.vocabulary_)} words and word pairs", margins)


def _length_margins(pairs: Sequence[TextPair]) -> NDArray[np.float64]:
    return np.array([float(len(chosen) - len(rejected)) for chosen, rejected in pairs])


def _vector_difference(vectorizer: TfidfVectorizer, pairs: Sequence[TextPair]) -> Any:
    """First minus second text of each pair as a sparse matrix, [pair, term]."""
    first, second = zip(*pairs, strict=True)
    return vectorizer.transform(first) - vectorizer.transform(second)


def _baseline(rule: str, margins: NDArray[np.float64]) -> BaselineAccuracy:
    correct = np.heaviside(margins, 0.5)
    return BaselineAccuracy(
        rule=rule,
        accuracy=float(correct.mean()),
        accuracy_ci95=wilson_interval(float(correct.sum()), len(correct)),
        num_ties=int((margins == 0).sum()),
        n=len(correct),
    )


def _check_pairs(train_pairs: Sequence[TextPair], test_pairs: Sequence[TextPair]) -> None:
    if not train_pairs or not test_pairs:
        raise DataError(
            f"{len(train_pairs)} training and {len(test_pairs)} test pairs were given; a baseline needs both."
        )
