"""Posts and replies: four forms of rows, every one of them under one reason."""

from pathlib import Path
from typing import Any

import pytest

from dump_files import HOUR, START, answer, comment, question, submission, write_dump
from prefloop.data.post_filters import PostFilters
from prefloop.data.posts import PostsRead, read_posts, split_summary
from prefloop.errors import DataError

LOOSE = PostFilters(min_characters=5)


def from_reddit(folder: Path, posts: list[dict[str, Any]], comments: list[dict[str, Any]]) -> PostsRead:
    # By name the comments come first: the order of the files must not matter.
    write_dump(folder / "RC_1.zst", comments)
    write_dump(folder / "RS_1.jsonl.gz", posts)
    return read_posts([folder], LOOSE)


def test_comments_find_their_posts_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = from_reddit(
        tmp_path,
        [submission("a"), submission("b", selftext="")],
        [comment("1", "b"), comment("2", "a", score=-4), comment("3", "b", created_utc=str(START + 2 * HOUR))],
    )
    assert [(post.key, post.text) for post in found.posts] == [
        ("Baking/a", "Loaf number a sinks in the middle."),
        ("Baking/b", ""),
    ]
    assert [[one.reply_id for one in post.replies] for post in found.posts] == [["2"], ["1", "3"]]
    assert found.posts[0].replies[0].score == -4
    assert found.posts[1].replies[1].created_seconds == START + 2 * HOUR
    assert [Path(file["path"]).name for file in found.files] == ["RS_1.jsonl.gz", "RC_1.zst"]
    assert [file["rows"] for file in found.files] == [2, 3]


def test_every_row_is_counted_under_one_reason(tmp_path: Path) -> None:
    found = from_reddit(
        tmp_path,
        [
            submission("a"),
            submission("a"),
            submission("b", selftext="[deleted]"),
            submission("c", author="AutoModerator"),
            submission("d", is_self=False, selftext=""),
        ],
        [
            comment("1", "a"),
            comment("1", "a"),
            comment("2", "b"),
            comment("3", "a", parent_id="t1_1"),
            comment("4", "a", body="[removed]"),
            comment("5", "a", author="helper_bot"),
            comment("6", "a", body="ok"),
            comment("7", "zz"),
        ],
    )
    assert found.post_account.to_json() == {
        "read": 5,
        "used": 1,
        "dropped": {"seen before": 1, "removed or deleted": 1, "written by a bot": 1, "a link, and no text": 1},
    }
    assert found.reply_account.to_json() == {
        "read": 8,
        "used": 1,
        "dropped": {
            "its post was dropped or is not there": 2,
            "seen before": 1,
            "answers a comment and not the post": 1,
            "removed or deleted": 1,
            "written by a bot": 1,
            "too short": 1,
        },
    }


def test_texts_are_read_as_people_saw_them(tmp_path: Path) -> None:
    found = from_reddit(
        tmp_path, [submission("a", title="Salt &amp; rye", selftext=" x &lt; y\r\n")], [comment("1", "a")]
    )
    assert (found.posts[0].title, found.posts[0].text) == ("Salt & rye", "x < y")


def test_questions_bring_their_answers(tmp_path: Path) -> None:
    rows = [
        question("1", [answer("7", accepted=True), answer("8", text=""), answer("9", score=0)]),
        question("2", [answer("10")], title=""),
    ]
    found = read_posts([write_dump(tmp_path / "q.jsonl", rows)], LOOSE)
    (post,) = found.posts
    assert (post.site, post.created_seconds) == ("bread", START)
    assert [(one.reply_id, one.accepted, one.score) for one in post.replies] == [("7", True, 2), ("9", False, 0)]
    assert post.replies[0].created_seconds == START + HOUR
    assert found.reply_account.dropped == {"empty": 1, "its post was dropped or is not there": 1}


def test_summaries_are_taken_from_the_text_or_from_their_column(tmp_path: Path) -> None:
    write_dump(tmp_path / "a.jsonl", [submission("a", selftext="It sank.\n\n**TL;DR:** bake longer\n\nThanks!")])
    ready = {"id": "b", "subreddit": "Baking", "title": "t", "post": "It rose. tl;dr is a word here", "summary": "rose"}
    write_dump(tmp_path / "b.jsonl", [ready | {"score": 1}])
    first, second = read_posts([tmp_path], LOOSE).posts
    assert (first.text, first.summary) == ("It sank.", "bake longer")
    assert (second.text, second.summary, second.created_seconds) == ("It rose. tl;dr is a word here", "rose", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A long tale.\nTLDR short", ("A long tale.", "short")),
        ("A tale.\ntl;dr: one\nmore\nTL, DR - two", ("A tale.\ntl;dr: one\nmore", "two")),
        ("TL;DR: nothing before", ("TL;DR: nothing before", None)),
        ("Nothing behind.\nTL;DR", ("Nothing behind.\nTL;DR", None)),
        ("He said tl;dr to me", ("He said tl;dr to me", None)),
    ],
)
def test_a_summary_stands_behind_its_mark(text: str, expected: tuple[str, str | None]) -> None:
    assert split_summary(text) == expected


def test_malformed_values_are_named_with_file_and_line(tmp_path: Path) -> None:
    path = write_dump(
        tmp_path / "a.jsonl",
        [
            submission("a"),
            submission("b", score="many"),
            submission("c", created_utc="yesterday"),
            submission("d", title=None),
            comment("1", "a"),
        ],
    )
    with pytest.raises(DataError) as caught:
        read_posts([path], LOOSE)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in lines] == [f"{path}:{number}" for number in (2, 3, 4, 5)]
    assert "whole number" in lines[0]
    assert "ISO date" in lines[1]
    assert "title is missing" in lines[2]
    assert "a comment in a file of submissions" in lines[3]


def test_rows_of_no_known_form_say_what_is_known(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"neither a submission .* it has prompt, chosen, rejected"):
        read_posts([path], LOOSE)


def test_a_source_that_is_not_there_or_holds_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        read_posts([tmp_path / "nowhere"], LOOSE)
    with pytest.raises(DataError, match="holds no dump"):
        read_posts([tmp_path], LOOSE)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_posts([tmp_path], LOOSE)
    (tmp_path / "a.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="has 1 problem;"):
        read_posts([tmp_path], LOOSE)


def test_filters_that_leave_no_post_say_so(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "a.jsonl", [submission("a"), submission("b")])
    with pytest.raises(DataError, match="of 2 were dropped 2 too few votes"):
        read_posts([path], PostFilters(least_post_score=10_000))


def test_a_site_that_does_not_occur_is_named_beside_those_that_do(tmp_path: Path) -> None:
    rows = [submission(name, subreddit="cooking") for name in "ab"] + [submission("c", subreddit="gardening")]
    path = write_dump(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError, match=r"names cookng, but no post is of that site; .* cooking \(2\), gardening \(1\)"
    ):
        read_posts([path], PostFilters(sites=("Gardening", "cookng")))
