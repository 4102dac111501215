"""Which posts and replies are used: the settings, and for each row the one reason why it is not."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, field_validator, model_validator

from prefloop.contracts import Settings

REMOVED_TEXTS = frozenset({"removed", "deleted", "deleted by user", "removed by reddit", "removed by moderator"})
BOT_NAME = re.compile(r"(?:^|[_-])bot$|^bot[_-]", re.IGNORECASE)
BOT_CAMEL_NAME = re.compile(r"[a-z0-9]B(?:ot|OT)$")
BOT_TEXT = re.compile(r"\bi(?:'| a)m an? (?:automated )?bot\b|\bperformed automatically\b", re.IGNORECASE)


class PostFilters(Settings):
    """Which posts and replies are used."""

    sites: tuple[str, ...] = ()
    """Subreddits or Stack Exchange sites, whatever their capitals; none takes all."""
    keywords: tuple[str, ...] = ()
    """Words or phrases of which a post's title or text must hold one, whatever their capitals; none asks for none."""
    least_post_score: int | None = None
    """Votes that a post must have."""
    least_reply_score: int | None = None
    """Votes that a reply must have."""
    after: str | None = None
    """The first day that counts, as YYYY-MM-DD, by the post's own date (UTC)."""
    before: str | None = None
    """The first day that counts no more, as YYYY-MM-DD."""
    min_characters: int = Field(default=40, ge=1)
    """Shorter replies are dropped."""
    max_characters: int = Field(default=2000, ge=1)
    """Longer replies are dropped."""
    max_post_characters: int = Field(default=4000, ge=1)
    """Posts whose text is longer are dropped."""
    bots: tuple[str, ...] = ("AutoModerator",)
    """Authors who are left out, besides those whose name or text says that they are bots."""
    allow_over_18: bool = False
    """Keep posts that are marked as for adults."""

    @field_validator("after", "before")
    @classmethod
    def _is_a_day(cls, day: str | None) -> str | None:
        if day is not None:
            try:
                datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
            except ValueError:
                raise ValueError("it must be a day, as in 2013-01-31") from None
        return day

    @model_validator(mode="after")
    def _is_possible(self) -> "PostFilters":
        if self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} is above max_characters {self.max_characters}")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise ValueError(f"no day lies between after={self.after} and before={self.before}")
        return self


def author_drop_reason(row: Mapping[str, Any], filters: PostFilters) -> str | None:
    """Why a row is dropped for who wrote it; None where it is not, or where the data names no author."""
    author = row.get("author")
    return "written by a bot" if isinstance(author, str) and is_bot(author, filters) else None


def is_bot(author: str, filters: PostFilters) -> bool:
    """Whether an author is listed among the bots, or says so in the name (`tip_bot`, `RemindMeBot`; not `Talbot`)."""
    is_listed = author.lower() in {name.lower() for name in filters.bots}
    return is_listed or bool(BOT_NAME.search(author) or BOT_CAMEL_NAME.search(author))


def post_drop_reason(
    row: Mapping[str, Any],
    filters: PostFilters,
    *,
    site: str,
    title: str,
    text: str,
    score: int,
    created_seconds: float | None,
) -> str | None:
    """Why a post is dropped; None where it is used. A post may be a title alone."""
    if filters.sites and site.lower() not in {name.lower() for name in filters.sites}:
        return "another site"
    if not title:
        return "empty title"
    if _is_removed(title) or _is_removed(text):
        return "removed or deleted"
    if row.get("is_self") is False:
        return "a link, and no text"
    if row.get("over_18") is True and not filters.allow_over_18:
        return "for adults"
    unwritable = _unwritable(title) or _unwritable(text)
    if unwritable:
        return unwritable
    if len(text) > filters.max_post_characters:
        return "post too long"
    if filters.least_post_score is not None and score < filters.least_post_score:
        return "too few votes"
    return _date_drop_reason(created_seconds, filters) or _keyword_drop_reason(f"{title}\n{text}", filters)


def text_drop_reason(text: str, filters: PostFilters, *, score: int) -> str | None:
    """Why a reply is dropped for its text or its votes; None where it is used."""
    if not text:
        return "empty"
    if _is_removed(text):
        return "removed or deleted"
    if BOT_TEXT.search(text):
        return "written by a bot"
    if len(text) < filters.min_characters:
        return "too short"
    if len(text) > filters.max_characters:
        return "too long"
    if filters.least_reply_score is not None and score < filters.least_reply_score:
        return "too few votes"
    return _unwritable(text)


def _is_removed(text: str) -> bool:
    """Whether nothing is left of a text but the note that stands in its place."""
    return text.startswith("[") and text.endswith("]") and text[1:-1].strip().lower() in REMOVED_TEXTS


def _unwritable(text: str) -> str | None:
    if "\x00" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair"
    return None


def _date_drop_reason(created_seconds: float | None, filters: PostFilters) -> str | None:
    if filters.after is None and filters.before is None:
        return None
    if created_seconds is None:
        return "no date"
    day = datetime.fromtimestamp(created_seconds, UTC).strftime("%Y-%m-%d")
    is_early = filters.after is not None and day < filters.after
    return "outside the dates" if is_early or (filters.before is not None and day >= filters.before) else None


def _keyword_drop_reason(text: str, filters: PostFilters) -> str | None:
    if not filters.keywords:
        return None
    words = "|".join(re.escape(word) for word in filters.keywords)
    found = re.search(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE)
    return None if found else "no keyword"
