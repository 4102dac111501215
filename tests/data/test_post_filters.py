"""Filters: each drops what it says and leaves the rest."""

from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.data.post_filters import PostFilters, is_bot, post_drop_reason, text_drop_reason

DAY = 86400


def post_reason(row: dict[str, Any] | None = None, filters: PostFilters | None = None, **changes: Any) -> str | None:
    facts: dict[str, Any] = {
        "site": "Baking",
        "title": "Why does it sink?",
        "text": "The rye loaf sinks.",
        "score": 5,
        "created_seconds": 10.0 * DAY,  # 1970-01-11
    }
    return post_drop_reason(row or {}, filters or PostFilters(), **(facts | changes))


def test_a_plain_post_is_used_and_so_is_a_title_alone() -> None:
    assert post_reason() is None
    assert post_reason(text="") is None


@pytest.mark.parametrize(
    ("settings", "row", "changes", "reason"),
    [
        ({"sites": ("cooking",)}, {}, {}, "another site"),
        ({}, {}, {"title": ""}, "empty title"),
        ({}, {}, {"text": "[removed]"}, "removed or deleted"),
        ({}, {}, {"text": "[ Removed by Reddit ]"}, "removed or deleted"),
        ({}, {}, {"title": "[deleted by user]"}, "removed or deleted"),
        ({}, {"is_self": False}, {}, "a link, and no text"),
        ({}, {"over_18": True}, {}, "for adults"),
        ({}, {}, {"text": "a\x00b"}, "holds a NUL character"),
        ({}, {}, {"title": "\ud83d"}, "holds half a surrogate pair"),
        ({"max_post_characters": 10}, {}, {}, "post too long"),
        ({"least_post_score": 6}, {}, {}, "too few votes"),
        ({"after": "1970-01-12"}, {}, {}, "outside the dates"),
        ({"before": "1970-01-11"}, {}, {}, "outside the dates"),
        ({"after": "1970-01-01"}, {}, {"created_seconds": None}, "no date"),
        ({"keywords": ("rice", "oaf")}, {}, {}, "no keyword"),
    ],
)
def test_each_filter_drops_what_it_says(
    settings: dict[str, Any], row: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    assert post_reason(row, PostFilters(**settings), **changes) == reason


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({"sites": ("BAKING", "cooking")}, {}),
        ({"allow_over_18": True}, {"over_18": True}),
        ({"least_post_score": 5}, {"is_self": True}),
        ({"after": "1970-01-11", "before": "1970-01-12"}, {}),
        ({"keywords": ("LOAF",)}, {}),
        ({"keywords": ("rye loaf",)}, {}),
        ({"keywords": ("c++", "sink?")}, {}),
    ],
)
def test_at_its_edge_a_filter_leaves_a_post(settings: dict[str, Any], row: dict[str, Any]) -> None:
    assert post_reason(row, PostFilters(**settings)) is None


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("", 9, "empty"),
        ("[deleted]", 9, "removed or deleted"),
        ("I am a bot, beep", 9, "written by a bot"),
        ("This action was performed automatically.", 9, "written by a bot"),
        ("short", 9, "too short"),
        ("x" * 31, 9, "too long"),
        ("x" * 30, 1, "too few votes"),
        ("x" * 29 + "\x00", 9, "holds a NUL character"),
        ("x" * 10, 2, None),
        ("[removed] the crust and ate it", 2, None),
    ],
)
def test_replies_are_dropped_for_one_reason(text: str, score: int, reason: str | None) -> None:
    filters = PostFilters(min_characters=10, max_characters=30, least_reply_score=2)
    assert text_drop_reason(text, filters, score=score) == reason


@pytest.mark.parametrize("author", ["AutoModerator", "automoderator", "tip_bot", "RemindMeBot", "bot-of-bread", "Bot"])
def test_bots_are_known_by_name(author: str) -> None:
    assert is_bot(author, PostFilters())


@pytest.mark.parametrize("author", ["Talbot", "abbot", "botanist", "robotics_fan", "[deleted]"])
def test_people_whose_names_hold_the_letters_are_people(author: str) -> None:
    assert not is_bot(author, PostFilters())


def test_a_list_of_bots_is_the_users() -> None:
    assert is_bot("ada", PostFilters(bots=("Ada",)))
    assert not is_bot("AutoModerator", PostFilters(bots=()))


@pytest.mark.parametrize(
    "settings",
    [
        {"after": "13-01-31"},
        {"before": "2013-02-30"},
        {"after": "2013-02-01", "before": "2013-02-01"},
        {"min_characters": 50, "max_characters": 49},
    ],
)
def test_settings_that_leave_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PostFilters(**settings)
