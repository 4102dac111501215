"""Text as it comes: the pieces make up the whole, characters come whole, and stop strings never show."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.chat_format import ChatFormat
from prefloop.errors import ModelError
from prefloop.models.from_scratch import train_tokenizer
from prefloop.rollouts.streamed_text import StreamedText

TOKENIZER = train_tokenizer(["one two three one two three"], vocabulary_size=280)
FORMAT = ChatFormat(TOKENIZER, prompt_format="raw")
PLAIN = ChatFormat(TOKENIZER, prompt_format="plain")


def pieces(text: str | list[int], *, stop: tuple[str, ...] = (), chat_format: ChatFormat = FORMAT) -> StreamedText:
    """Everything pushed, with the pieces checked against the text at each step."""
    streamed = StreamedText(chat_format, stop=stop)
    shown = ""
    for token in chat_format.completion_ids(text) if isinstance(text, str) else text:
        shown += streamed.push(token)
        assert shown == streamed.text
        assert not shown.endswith("\ufffd")
        if streamed.stopped:
            break
    shown += streamed.finish()
    assert shown == streamed.text
    return streamed


def test_a_character_of_several_tokens_comes_whole() -> None:
    streamed = StreamedText(FORMAT)
    ids = FORMAT.completion_ids("a\U0001f600b", ended=False)
    assert len(ids) == 6  # One letter, four bytes, one letter.
    assert [streamed.push(token) for token in ids] == ["a", "", "", "", "\U0001f600", "b"]
    assert streamed.finish() == ""


def test_half_a_character_at_the_end_is_shown_at_last() -> None:
    streamed = StreamedText(FORMAT)
    assert [streamed.push(token) for token in FORMAT.completion_ids("aé", ended=False)[:2]] == ["a", ""]
    assert streamed.finish() == "\ufffd"
    assert streamed.text == "a\ufffd"


def test_the_end_token_and_the_opening_space_of_the_plain_format_do_not_show() -> None:
    assert pieces("one two", chat_format=PLAIN).text == "one two"
    assert pieces("one two").text == "one two"


def test_text_ends_before_the_first_stop_string() -> None:
    streamed = pieces("one two three", stop=("three", "two"))
    assert (streamed.text, streamed.stopped) == ("one ", True)
    assert streamed.push(FORMAT.completion_ids("more")[0]) == ""
    assert streamed.finish() == ""
    assert pieces("one two", stop=("onf", "twos")).text == "one two"
    assert pieces("one", stop=("o",)).text == ""
    assert pieces("xaéa", stop=("é", "aéa")).text == "xa"
    assert pieces("xaéa", stop=("é", "aé")).text == "x"


def test_a_stop_string_that_only_began_is_held_back_and_shown_at_last() -> None:
    streamed = StreamedText(FORMAT, stop=("END!",))
    given_out = [streamed.push(token) for token in FORMAT.completion_ids("aENDbEN", ended=False)]
    assert given_out == ["a", "", "", "", "ENDb", "", ""]
    assert streamed.finish() == "EN"
    assert not streamed.stopped


def test_the_longest_beginning_is_held_back() -> None:
    # After "aab" a stop "aabaac" may still come from any of its overlaps with itself.
    assert pieces("xaabaabaac", stop=("aabaac",)).text == "xaab"


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("abé\U0001f600 \n"), max_size=30), st.lists(st.text("abé ", min_size=1, max_size=4)))
def test_the_whole_is_what_a_search_in_the_whole_text_says(text: str, stop: list[str]) -> None:
    streamed = pieces(text, stop=tuple(stop))
    # The model stops as soon as a stop string is there: a longer one that would have begun earlier never comes about.
    found = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    assert streamed.text == (text[: min(found)[1]] if found else text)
    assert streamed.stopped == bool(found)


def test_any_tokens_at_all_stream_to_what_decoding_says() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(TOKENIZER)) for _ in range(12)]
        for chat_format in (FORMAT, PLAIN):
            assert pieces(ids, chat_format=chat_format).text == chat_format.decode(ids)


def test_a_tokenizer_that_rewrites_what_was_shown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["do", "don't", "dont"])
    monkeypatch.setattr(ChatFormat, "decode", lambda *_: next(texts))
    streamed = StreamedText(FORMAT)
    assert (streamed.push(1), streamed.push(2)) == ("do", "n't")
    with pytest.raises(ModelError, match="rewrites earlier text"):
        streamed.push(3)
