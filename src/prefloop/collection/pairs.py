"""From several answers to one pair, and pairs on disk as comparisons.jsonl.

Of the answers drawn for a prompt, the two that differ most make the pair: people are asked about differences, and a
pair that says the same in other words costs a label and teaches nothing. The choice looks at the texts alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise, product
from typing import Any

from prefloop.errors import DataError
from prefloop.records import Comparison, Completion, Label, Message, Prompt


def line_difference(first: str, second: str) -> float:
    """How much two texts differ, from 0 (the same lines in the same order) to 1 (no two neighbouring lines in common).

    One minus the Jaccard similarity of their pairs of neighbouring lines, text start and end included.
    """
    one, other = _neighbours(first), _neighbours(second)
    return 1.0 - len(one & other) / len(one | other)


def _neighbours(text: str) -> set[tuple[str, str]]:
    lines = ["", *(line.strip() for line in text.strip().split("\n")), ""]
    return set(pairwise(lines))


def most_different(
    completions: Sequence[Completion], others: Sequence[Completion] | None = None
) -> tuple[Completion, Completion] | None:
    """The two completions that differ most, in the order they were drawn; None when no two differ but for spaces.

    With `others`, one of the two is from `completions` and one from `others`.
    """
    candidates = combinations(completions, 2) if others is None else product(completions, others)
    pairs = ((line_difference(one.text, other.text), one, other) for one, other in candidates)
    difference, one, other = max(pairs, key=lambda pair: pair[0], default=(0.0, None, None))
    return (one, other) if one is not None and other is not None and difference > 0.0 else None


def comparison_to_row(comparison: Comparison) -> dict[str, Any]:
    """A comparison as a row of comparisons.jsonl; `comparison_from_row` reads it back."""
    return {
        "pair_id": comparison.pair_id,
        "prompt": _prompt_to_value(comparison.prompt),
        "left": _side(comparison.left),
        "right": _side(comparison.right),
        "details": comparison.details,
    }


def comparison_from_row(row: Mapping[str, Any]) -> Comparison:
    """Raises DataError for a row that is no comparison."""
    try:
        return Comparison(
            row["pair_id"],
            _prompt_from_value(row["prompt"]),
            Completion(**row["left"]),
            Completion(**row["right"]),
            row.get("details", {}),
        )
    except (KeyError, TypeError) as problem:
        raise DataError(f"a row of comparisons is not usable ({problem}): {str(row)[:120]}") from problem


def label_rows(labels: Iterable[Label]) -> list[dict[str, str]]:
    """Labels as rows of labels.jsonl."""
    return [{"pair_id": one.pair_id, "annotator": one.annotator, "choice": one.choice} for one in labels]


def _side(completion: Completion) -> dict[str, Any]:
    return {"text": completion.text, "ended": completion.ended, "source": completion.source}


def _prompt_to_value(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def _prompt_from_value(value: Any) -> Prompt:
    return value if isinstance(value, str) else tuple(Message(**message) for message in value)
