"""A small, independent judge of texts: something a policy can be measured by without having been trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from prefloop.errors import DataError
from prefloop.evaluation.text_statistics import Rate, rate_with_interval


@dataclass(frozen=True, repr=False)
class TextJudge:
    """Logistic regression (C = 10) on TF-IDF of words and word pairs; fits in seconds, always to the same weights.

    It is fitted anew from its texts wherever it is needed and refuses to be pickled: a file that runs code when it is
    read has no place in a run folder.

    Source: TF-IDF: Sparck Jones (1972); as a strong baseline for sentiment: Wang and Manning (2012).
    """

    vectorizer: TfidfVectorizer
    classifier: LogisticRegression

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int]) -> "TextJudge":
        """A judge fitted to texts with labels 1 (positive) and 0.

        Raises DataError when the lengths differ, a label is neither 0 nor 1, one label does not occur, or the texts
        hold no word.
        """
        _check_labels(texts, labels)
        if len(set(labels)) < 2:
            raise DataError(f"The {len(texts)} texts do not have both labels; a judge needs texts of label 0 and of 1.")
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        try:
            vectors = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(f"The {len(texts)} texts hold no word of two letters or more.") from error
        classifier = LogisticRegression(C=10, max_iter=1000)
        classifier.fit(vectors, list(labels))
        return cls(vectorizer=vectorizer, classifier=classifier)

    def probability_positive(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probability of label 1 of each text, [text], in (0, 1). A text of unknown words gets the prior."""
        if not texts:
            return np.zeros(0)
        return np.asarray(self.classifier.predict_proba(self.vectorizer.transform(texts)), dtype=np.float64)[:, 1]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> Rate:
        """Share of texts whose likelier label is the given one, with its 95 % interval and count.

        A probability of exactly one half counts as half right. Raises DataError when the lengths differ, there are no
        texts, or a label is neither 0 nor 1.
        """
        _check_labels(texts, labels)
        margins = (self.probability_positive(texts) - 0.5) * (2 * np.array(labels, dtype=np.float64) - 1)
        return rate_with_interval(np.heaviside(margins, 0.5).tolist())

    def __reduce__(self) -> NoReturn:
        raise TypeError("A TextJudge is never pickled; fit it again from its texts.")


def _check_labels(texts: Sequence[str], labels: Sequence[int]) -> None:
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} texts and {len(labels)} labels were given; a text has one label.")
    for row, label in enumerate(labels):
        if label not in (0, 1):
            raise DataError(f"The label of row {row} is {label}; it must be 0 or 1.")
