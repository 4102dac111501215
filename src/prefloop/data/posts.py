"""Posts and their replies from raw dumps: what each row is, which are used, and why the others are not.

Four forms of rows are known, by their columns:

- a Reddit submission: `id`, `subreddit`, `title`, `selftext`, `score`, `created_utc`;
- a Reddit comment: `id`, `link_id`, `parent_id`, `body`, `score`, `created_utc`;
- a Stack Exchange question with its answers: `site`, `id`, `title`, `question`, `score`, `created`, and `answers`, each
  with `id`, `score`, `created`, `accepted`, `text`;
- a Reddit submission whose author's summary was taken out already: `id`, `subreddit`, `title`, `post`, `summary`.

A submission's own TL;DR is taken out of its text (Völske et al. 2017, "TL;DR: Mining Reddit to Learn Automatic
Summarization", section 3).
"""

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefloop.data.dumps import SUFFIXES, dump_rows, dump_sha256, is_dump
from prefloop.data.post_filters import PostFilters, author_drop_reason, post_drop_reason, text_drop_reason
from prefloop.data.row_files import Problems, Row, json_type
from prefloop.data.sources import SourceFile
from prefloop.errors import DataError

RowForm = Literal["submission", "comment", "question", "summarised submission"]

NUM_SITES_NAMED = 8

DUPLICATE = "seen before"
NO_POST = "its post was dropped or is not there"
NESTED = "answers a comment and not the post"

SUMMARY_MARK = re.compile(r"^\W*tl\W{0,2}dr\b\W*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """A comment on a post or an answer to a question. `created_seconds` counts from 1970, UTC."""

    reply_id: str
    text: str
    score: int
    created_seconds: float
    accepted: bool = False


@dataclass(frozen=True)
class Post:
    """A submission or question with the replies that are used. `site` is its subreddit or Stack Exchange site.

    `summary` is its author's own TL;DR. `created_seconds` is None where the data does not say.
    """

    site: str
    post_id: str
    title: str
    text: str
    score: int
    created_seconds: float | None
    summary: str | None = None
    replies: tuple[Reply, ...] = ()

    @property
    def key(self) -> str:
        """What no other post has."""
        return f"{self.site}/{self.post_id}"


@dataclass
class Account:
    """Every row under one reason: `num_read` is `num_used` and what was `dropped` together."""

    num_read: int = 0
    num_used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, num: int = 1) -> None:
        self.dropped[reason] += num

    def check(self) -> None:
        assert self.num_read == self.num_used + self.dropped.total(), "a row vanished"

    def to_json(self) -> dict[str, Any]:
        return {"read": self.num_read, "used": self.num_used, "dropped": dict(self.dropped.most_common())}


@dataclass(frozen=True)
class PostsRead:
    """The posts in the order of the files, each with its used replies in theirs, and the account of both."""

    posts: list[Post]
    post_account: Account
    reply_account: Account
    files: list[SourceFile]


def read_posts(sources: Sequence[str | Path], filters: PostFilters) -> PostsRead:
    """The posts and replies in files of dumps, and in folders of them, that the filters leave.

    Comments are read after all posts, so the order of the files does not matter. Text that is empty, removed, deleted,
    written by a bot, too short or too long, and comments on comments, are dropped and counted.

    Raises DataError for a file that cannot be read, for rows of no known form or with malformed values (up to 20 by
    file and line), for a site that was asked for and does not occur, and where no post is left.
    """
    problems = Problems()
    reading = _Reading(filters, problems)
    forms: dict[Path, RowForm] = {path: _form_of_file(path) for path in _files(sources)}
    files: list[SourceFile] = []
    for path in sorted(forms, key=lambda path: forms[path] == "comment"):
        num_rows = 0
        for row in dump_rows(path, problems):
            num_rows += 1
            try:
                reading.take(row, forms[path])
            except _Malformed as problem:
                problems.add(row.place, str(problem))
        files.append({"path": str(path), "sha256": dump_sha256(path), "rows": num_rows})
    problems.raise_any()
    reading.check_sites()
    posts = reading.finished()
    if not posts:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in reading.post_account.dropped.most_common())
        raise DataError(
            f"No post of {', '.join(map(str, sources))} is left: of {reading.post_account.num_read:,} were dropped "
            f"{reasons or 'none'}; loosen the filters, or give a file of submissions or questions."
        )
    return PostsRead(posts, reading.post_account, reading.reply_account, files)


def _files(sources: Sequence[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for source in sources:
        place = Path(source).expanduser()
        if not place.exists():
            raise DataError(f"There is no file or folder {source}; give dumps of posts and comments.")
        inside = [path for path in place.iterdir() if path.is_file() and is_dump(path)] if place.is_dir() else [place]
        found.update(dict.fromkeys(sorted(inside)))
    if not found:
        raise DataError(f"{', '.join(map(str, sources))} holds no dump; names end in {', '.join(SUFFIXES)}.")
    return list(found)


class _Malformed(Exception):  # noqa: N818 - collected and raised as one DataError
    """A row that is not what its columns promise."""


class _Reading:
    """Takes rows one by one and keeps what the filters leave."""

    def __init__(self, filters: PostFilters, problems: Problems) -> None:
        self.filters = filters
        self.problems = problems
        self.post_account = Account()
        self.reply_account = Account()
        self.posts: dict[str, Post] = {}
        self.replies: dict[str, list[Reply]] = {}
        self.seen: set[str] = set()
        self.sites: Counter[str] = Counter()

    def take(self, row: Row, form: RowForm) -> None:
        here = _form_of(row)
        if here != form:
            raise _Malformed(f"a {here} in a file of {form}s; give each its own file")
        if form == "comment":
            self._take_comment(row)
        elif form == "question":
            self._take_question(row)
        else:
            self._take_submission(row)

    def check_sites(self) -> None:
        """Raises DataError for a site that was asked for and of which there is no post: a slip, or the wrong file."""
        known = {name.lower() for name in self.sites}
        unknown = [name for name in self.filters.sites if name.lower() not in known]
        if unknown and self.sites:
            listed = ", ".join(f"{name} ({count:,})" for name, count in self.sites.most_common(NUM_SITES_NAMED))
            more = f" and {len(self.sites) - NUM_SITES_NAMED:,} more" if len(self.sites) > NUM_SITES_NAMED else ""
            raise DataError(
                f"filters.sites names {', '.join(unknown)}, but no post is of that site; "
                f"there are posts of {listed}{more}."
            )

    def finished(self) -> list[Post]:
        """The posts with their replies."""
        self.post_account.check()
        self.reply_account.check()
        return [replace(post, replies=tuple(self.replies.get(key, ()))) for key, post in self.posts.items()]

    def _take_submission(self, row: Row) -> None:
        text, summary = _text(row, "post" if "post" in row.values else "selftext"), row.values.get("summary")
        if summary is None:
            text, summary = split_summary(text)
        post = Post(
            site=_text(row, "subreddit"),
            post_id=_name(row, "id"),
            title=_text(row, "title"),
            text=text,
            score=_whole(row, "score"),
            created_seconds=_moment(row, "created_utc") if "created_utc" in row.values else None,
            summary=_text(row, "summary") if "summary" in row.values else summary,
        )
        self._take_post(row, f"t3_{post.post_id}", post)

    def _take_question(self, row: Row) -> None:
        post = Post(
            site=_text(row, "site"),
            post_id=_name(row, "id"),
            title=_text(row, "title"),
            text=_text(row, "question"),
            score=_whole(row, "score"),
            created_seconds=_moment(row, "created"),
        )
        kept = self._take_post(row, post.key, post)
        answers = row.values["answers"]
        for number, answer in enumerate(answers if isinstance(answers, list) else [answers]):
            if not isinstance(answer, dict):
                raise _Malformed(f"answers[{number}] is {json_type(answer)}; it must be an object")
            inner = Row(row.place, answer)
            found = self._reply(inner, text="text", created="created", is_kept=kept)
            if found is not None:
                self.replies.setdefault(post.key, []).append(found)

    def _take_post(self, row: Row, key: str, post: Post) -> bool:
        self.post_account.num_read += 1
        self.sites[post.site] += 1
        reason = DUPLICATE if key in self.seen else author_drop_reason(row.values, self.filters)
        reason = reason or post_drop_reason(
            row.values,
            self.filters,
            site=post.site,
            title=post.title,
            text=post.text,
            score=post.score,
            created_seconds=post.created_seconds,
        )
        self.seen.add(key)
        if reason:
            self.post_account.drop(reason)
            return False
        self.posts[key] = post
        self.post_account.num_used += 1
        return True

    def _take_comment(self, row: Row) -> None:
        post_key = _name(row, "link_id")
        found = self._reply(
            row,
            text="body",
            created="created_utc",
            is_kept=post_key in self.posts,
            is_nested=_name(row, "parent_id") != post_key,
        )
        if found is not None:
            self.replies.setdefault(post_key, []).append(found)

    def _reply(self, row: Row, *, text: str, created: str, is_kept: bool, is_nested: bool = False) -> Reply | None:
        """The reply, if it is used; it is counted either way."""
        reply = Reply(
            _name(row, "id"),
            _text(row, text),
            _whole(row, "score"),
            _moment(row, created),
            row.values.get("accepted") is True,
        )
        self.reply_account.num_read += 1
        reason = None if is_kept else NO_POST
        reason = reason or (NESTED if is_nested else None)
        reason = reason or author_drop_reason(row.values, self.filters)
        reason = reason or text_drop_reason(reply.text, self.filters, score=reply.score)
        if reason is None and text == "body":
            reason = DUPLICATE if f"t1_{reply.reply_id}" in self.seen else None
            self.seen.add(f"t1_{reply.reply_id}")
        if reason:
            self.reply_account.drop(reason)
            return None
        self.reply_account.num_used += 1
        return reply


def split_summary(text: str) -> tuple[str, str | None]:
    """A text without its TL;DR, and that; None where it has none, or none with a text before and behind the mark."""
    marks = list(SUMMARY_MARK.finditer(text))
    if not marks:
        return text, None
    before, behind = text[: marks[-1].start()].strip(), text[marks[-1].end() :].strip()
    # A summary is one paragraph; what follows it is an edit, a link, a thank you.
    summary = behind.partition("\n\n")[0].strip()
    return (before, summary) if before and summary else (text, None)


# --- rows -----------------------------------------------------------------------------------------------------------


def _form_of_file(path: Path) -> RowForm:
    """The form of the file's first row. Raises DataError for an empty file, or one of no known form."""
    problems = Problems()
    try:
        row = next(dump_rows(path, problems), None)
        if row is None:
            problems.raise_any()
            raise DataError(f"{path} holds no rows; leave it out.")
        return _form_of(row)
    except _Malformed as problem:
        raise DataError(f"{path}: {problem}.") from problem


def _form_of(row: Row) -> RowForm:
    columns = row.values.keys()
    if columns >= {"site", "id", "title", "question", "answers"}:
        return "question"
    if columns >= {"id", "link_id", "parent_id", "body"}:
        return "comment"
    if columns >= {"id", "subreddit", "title", "post", "summary"}:
        return "summarised submission"
    if columns >= {"id", "subreddit", "title", "selftext"}:
        return "submission"
    raise _Malformed(
        "a row is neither a submission (id, subreddit, title, selftext, score, created_utc) nor a comment (id, "
        "link_id, parent_id, body, score, created_utc) nor a question (site, id, title, question, score, created, "
        "answers); "
        f"it has {', '.join(columns) or 'no columns'}. In a folder with other files, name those to read, as in "
        '"stages.posts.sources=[FILE, FILE]"'
    )


def _value(row: Row, column: str) -> Any:
    if row.values.get(column) is None:
        raise _Malformed(f"{column} is missing")
    return row.values[column]


def _name(row: Row, column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _Malformed(f"{column} is {json_type(value)}; it must be a name")
    return str(value)


def _text(row: Row, column: str) -> str:
    """Text as people saw it: Reddit's dumps write & and < as in a web page."""
    value = _value(row, column)
    if not isinstance(value, str):
        raise _Malformed(f"{column} is {json_type(value)}; it must be a string")
    return html.unescape(value).replace("\r\n", "\n").strip()


def _whole(row: Row, column: str) -> int:
    value = _value(row, column)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Malformed(f"{column} is {json_type(value)}; it must be a whole number")
    return value


def _moment(row: Row, column: str) -> float:
    """Seconds since 1970, from a number (in old dumps a text that holds one) or an ISO date (UTC if without a zone)."""
    value = _value(row, column)
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, int | float):
            return float(value)
        if re.fullmatch(r"\d+", value):
            return float(value)
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError):
        raise _Malformed(f"{column} is {str(value)[:40]!r}; it must be seconds since 1970 or an ISO date") from None
