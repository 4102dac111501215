"""Posts and replies in the shape of the public dumps, all written here."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

Rows = Iterable[Mapping[str, Any]]

START = 1_400_000_000
HOUR = 3600


def submission(post_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": post_id,
        "subreddit": "Baking",
        "title": f"Why does loaf {post_id} sink?",
        "selftext": f"Loaf number {post_id} sinks in the middle.",
        "score": 10,
        "created_utc": START,
        "author": "ada",
        "is_self": True,
        "over_18": False,
    }
    return row | changes


def comment(comment_id: str, post_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": comment_id,
        "link_id": f"t3_{post_id}",
        "parent_id": f"t3_{post_id}",
        "subreddit": "Baking",
        "body": f"Give it more time in the oven, says comment {comment_id}.",
        "score": 3,
        "created_utc": START + HOUR,
        "author": "bob",
    }
    return row | changes


def question(question_id: str, answers: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    row = {
        "site": "bread",
        "id": question_id,
        "title": f"How long does dough {question_id} rest?",
        "question": f"My dough {question_id} is stiff.",
        "score": 4,
        "tags": ["dough"],
        "created": "2014-05-13T16:53:20.000",
        "answers": list(answers),
    }
    return row | changes


def answer(answer_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": answer_id,
        "score": 2,
        "created": "2014-05-13T17:53:20.000",
        "accepted": False,
        "text": f"Let it rest for an hour, says answer {answer_id}.",
    }
    return row | changes


def packed(rows: Rows, suffix: str) -> bytes:
    """The rows as a dump of that suffix holds them."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix.endswith(".gz"):
        return gzip.compress(text)
    return zstandard.ZstdCompressor().compress(text) if suffix.endswith(".zst") else text


def write_dump(path: Path, rows: Rows) -> Path:
    path.write_bytes(packed(rows, path.suffix))
    return path


def forum(num_questions: int) -> list[dict[str, Any]]:
    """Questions whose answers differ: kind ones get more votes, and early ones get more again.

    Every third question has its better answer late, so that early and late winners both occur; one in four askers
    accepts.
    """
    rows = []
    for number in range(num_questions):
        late = number % 3 == 0
        kind = f"Gladly: rest dough {number} for an hour, then bake it gently."
        curt = f"No idea, throw dough {number} away and do not ask again."
        first, second = (curt, kind) if late else (kind, curt)
        votes = {kind: 6 + number % 4, curt: 1}
        answers = [
            answer(
                f"{number}{side}",
                text=text,
                score=votes[text],
                created=f"2014-05-{13 + day:02}T17:53:20.000",
                accepted=text == kind and number % 4 == 0,
            )
            for side, text, day in (("a", first, 0), ("b", second, 1))
        ]
        rows.append(question(str(number), answers))
    return rows
