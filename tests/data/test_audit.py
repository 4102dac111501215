import json

import numpy as np
import pytest

from prefloop.batches import TokenGroup
from prefloop.data.audit import Audit, prepare_groups
from prefloop.data.chat_format import ChatFormat
from prefloop.errors import DataError, SettingsError
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, TextExample


@pytest.fixture(scope="module")
def chat_format(plain_tokenizer):
    return ChatFormat(plain_tokenizer, prompt_format="raw")


def test_rows_that_fit_are_groups_in_their_order(chat_format):
    records = [TextExample("The film"), TextExample("warm")]
    groups, kept, audit = prepare_groups(records, chat_format, max_length=50)
    assert groups == [chat_format.text_group(record) for record in records]
    assert kept == records
    assert (audit.rows_read, audit.used, audit.dropped, audit.num_truncated) == (2, 2, {}, 0)


def test_every_kind_of_record_is_laid_out(chat_format):
    records = [TextExample("a"), Demonstration("p", "a"), PreferencePair("p", "a", "b"), LabelledText("a", 1), "p"]
    groups, _, _ = prepare_groups(records, chat_format, max_length=50)
    assert [len(group.responses) for group in groups] == [1, 1, 2, 1, 0]
    assert groups[-1] == TokenGroup(chat_format.prompt_ids("p"), ())


def test_the_limit_is_on_a_prompt_with_one_response(chat_format):
    pair = PreferencePair("How?", "good", "bad answer")
    group = chat_format.pair_group(pair)
    longest = len(group.prompt) + len(group.responses[1])
    assert prepare_groups([pair], chat_format, max_length=longest)[0] == [group]
    _, kept, audit = prepare_groups([pair, PreferencePair("a", "b", "c")], chat_format, max_length=longest - 1)
    assert kept == [PreferencePair("a", "b", "c")]
    assert audit.dropped == {"longer than max_length": 1}
    assert audit.rows_read == 2


def test_what_was_dropped_before_is_part_of_the_account(chat_format):
    records = [TextExample("a"), TextExample("a" * 90)]
    before = {"empty text": 3, "longer than max_length": 1}
    _, _, audit = prepare_groups(records, chat_format, max_length=9, dropped_before=before)
    assert (audit.rows_read, audit.used, audit.dropped) == (6, 1, {"empty text": 3, "longer than max_length": 2})
    assert before == {"empty text": 3, "longer than max_length": 1}


def test_truncation_cuts_the_prompt_from_the_left_and_keeps_its_start(chat_format):
    demonstration = Demonstration("0 1 2 3 good", "bad")
    whole = chat_format.demonstration_group(demonstration)
    max_length = whole.num_tokens - 3
    (group,), kept, audit = prepare_groups([demonstration], chat_format, max_length=max_length, too_long="truncate")
    assert group.num_tokens == max_length
    assert group.prompt == whole.prompt[:1] + whole.prompt[4:]
    assert group.responses == whole.responses
    assert kept == [demonstration]
    assert (audit.num_truncated, audit.dropped) == (1, {})


def test_truncation_cuts_a_response_only_where_it_is_too_long_alone(chat_format):
    demonstration = Demonstration("0 1 2", "good bad good bad")
    whole = chat_format.demonstration_group(demonstration)
    response = whole.responses[0]
    (group,), _, _ = prepare_groups([demonstration], chat_format, max_length=len(response), too_long="truncate")
    assert group.prompt == whole.prompt[-1:]
    assert group.responses == (response[:-1],)
    assert chat_format.eos_id not in group.responses[0]
    (group,), _, _ = prepare_groups([demonstration], chat_format, max_length=len(response) + 1, too_long="truncate")
    assert (group.prompt, group.responses) == (whole.prompt[-1:], whole.responses)
    (group,), _, _ = prepare_groups([demonstration], chat_format, max_length=2, too_long="truncate")
    assert group.responses == (response[:1],)


def test_truncation_keeps_every_group_within_the_limit(chat_format):
    rng = np.random.default_rng(0)
    records = [
        PreferencePair("p " * rng.integers(1, 20), "good " * rng.integers(1, 20), "bad " * rng.integers(1, 20))
        for _ in range(100)
    ]
    for max_length in (2, 3, 10, 25):
        groups, kept, audit = prepare_groups(records, chat_format, max_length=max_length, too_long="truncate")
        assert max(group.longest_leaf for group in groups) <= max_length
        assert len(groups) == len(kept) == audit.used
        changed = [group != chat_format.pair_group(record) for group, record in zip(groups, kept, strict=True)]
        assert audit.num_truncated == sum(changed)
        for group, cut in zip(groups, changed, strict=True):
            assert not cut or group.longest_leaf == max_length


def test_a_pair_that_is_equal_once_cut_is_dropped(chat_format):
    pairs = [PreferencePair("p", "good good bad", "good good good"), PreferencePair("p", "bad", "good")]
    _, kept, audit = prepare_groups(pairs, chat_format, max_length=3, too_long="truncate")
    assert kept == pairs[1:]
    assert audit.dropped == {"equal after truncation": 1}


def test_a_pair_that_is_equal_in_tokens_is_dropped(prefixed_tokenizer):
    # Two characters that this tokenizer writes as the same token.
    pairs = [PreferencePair("p", "a b", "a▁b"), PreferencePair("p", "bad", "good")]
    _, kept, audit = prepare_groups(pairs, ChatFormat(prefixed_tokenizer), max_length=50)
    assert kept == pairs[1:]
    assert audit.dropped == {"equal in tokens": 1}


def test_a_group_without_a_supervised_token_is_dropped(chat_format, monkeypatch):
    masked = TokenGroup((1,), ((5, 6, 7, 8),), ((False, False, True, True),))
    monkeypatch.setattr(chat_format, "text_group", lambda example: masked)
    groups, _, audit = prepare_groups([TextExample("a")], chat_format, max_length=4, too_long="truncate")
    assert groups == [TokenGroup((1,), ((5, 6, 7),), ((False, False, True),))]
    assert audit.supervised_share == pytest.approx(1 / 4)
    with pytest.raises(DataError, match="1 no supervised token left"):
        prepare_groups([TextExample("a")], chat_format, max_length=3, too_long="truncate")


def test_a_long_row_under_error_is_named(chat_format):
    records = [TextExample("a"), Demonstration("p " * 30, "a")]
    length = chat_format.demonstration_group(records[1]).longest_leaf
    with pytest.raises(DataError, match=rf"a\.jsonl:7 has {length} tokens .* at most 20 fit"):
        prepare_groups(records, chat_format, max_length=20, too_long="error", places=["a.jsonl:1", "a.jsonl:7"])
    with pytest.raises(DataError, match="record 2 has"):
        prepare_groups(records, chat_format, max_length=20, too_long="error")


def test_a_row_that_cannot_be_laid_out_is_named(chat_format):
    records = [Demonstration("p", "a"), Demonstration((Message("user", "p"),), "a")]
    with pytest.raises(DataError, match=r"a\.jsonl:7: prompt_format=raw"):
        prepare_groups(records, chat_format, max_length=20, places=["a.jsonl:1", "a.jsonl:7"])


def test_no_row_left_is_an_error(chat_format):
    with pytest.raises(DataError, match="1 longer than max_length"):
        prepare_groups([TextExample("a" * 90)], chat_format, max_length=5)
    with pytest.raises(DataError, match="no rows were given"):
        prepare_groups([], chat_format, max_length=5)


def test_settings_that_do_not_fit_are_refused(chat_format):
    with pytest.raises(SettingsError, match="drop, truncate, error"):
        prepare_groups([TextExample("a")], chat_format, max_length=5, too_long="cut")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 2"):
        prepare_groups([TextExample("a")], chat_format, max_length=1)


def test_the_figures_of_the_account(chat_format):
    records = [Demonstration("x" * prompt, "y" * response) for prompt, response in [(1, 2), (3, 4), (5, 60), (7, 8)]]
    groups, _, audit = prepare_groups(records, chat_format, max_length=500)
    prompts = sorted(len(group.prompt) for group in groups)
    responses = sorted(len(group.responses[0]) for group in groups)
    # Nearest rank of four values: the 2nd for 50 %, the 4th for 90 % and above.
    assert audit.prompt_length_tokens == {50: prompts[1], 90: prompts[3], 99: prompts[3], 100: prompts[3]}
    assert audit.response_length_tokens == {50: responses[1], 90: responses[3], 99: responses[3], 100: responses[3]}
    assert audit.total_tokens == sum(prompts) + sum(responses)
    assert audit.supervised_share == pytest.approx(sum(responses) / audit.total_tokens)


def test_examples_mark_what_is_learned_from(chat_format, conversation_tokenizer):
    records = [Demonstration("p", "good"), Demonstration("unseen", "x"), PreferencePair("q", "a", "b")]
    _, _, audit = prepare_groups(records, chat_format, max_length=50)
    assert audit.examples == (
        "<|im_end|>p«good<|im_end|>»",
        "<|im_end|>q«a<|im_end|>»\n--- or ---\n«b<|im_end|>»",
    )
    chat = ChatFormat(conversation_tokenizer, prompt_format="chat")
    turns = [Message("user", "p"), Message("assistant", "good"), Message("user", "q"), Message("assistant", "bad")]
    conversation = chat.messages_group(turns)
    chat.text_group = lambda example: conversation
    _, _, audit = prepare_groups([TextExample("")], chat, max_length=200)
    opening = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    second = "\n" + opening.format("q")
    assert audit.examples == ("<s>" + opening.format("p") + f"«good<|im_end|>»{second}«bad<|im_end|>»",)


def test_long_examples_lose_their_middle(chat_format):
    _, _, audit = prepare_groups([TextExample("a" * 3000 + "b")], chat_format, max_length=5000)
    assert len(audit.examples[0]) < 1200
    assert audit.examples[0].startswith("<|im_end|>«aaa")
    assert audit.examples[0].endswith("ab<|im_end|>»")


def test_the_account_in_words_and_in_json(chat_format):
    records = [TextExample("a"), TextExample("a" * 90), PreferencePair("p", "a", "b")]
    _, _, audit = prepare_groups(
        records, chat_format, max_length=30, too_long="truncate", dropped_before={"empty text": 2}
    )
    lines = audit.lines()
    assert lines[0] == "5 rows read, 3 used, 2 dropped"
    assert "  dropped 2: empty text" in lines
    assert "  truncated 1 of those used" in lines
    assert "<|im_end|>«a<|im_end|>»" in lines
    values = json.loads(json.dumps(audit.to_json()))
    assert values["rows_read"] == values["used"] + sum(values["dropped"].values()) == 5
    assert values["prompt_length_tokens"]["100"] == audit.prompt_length_tokens[100]
    assert values["examples"] == list(audit.examples)


def test_a_prompt_alone_has_no_response_figures(chat_format):
    _, _, audit = prepare_groups(["a", "b"], chat_format, max_length=30)
    assert (audit.response_length_tokens, audit.supervised_share) == ({}, 0.0)
    assert not any("response length" in line for line in audit.lines())


def test_a_lost_row_cannot_pass():
    with pytest.raises(AssertionError):
        Audit(3, 1, {"empty text": 1}, 0, 1, 1.0, {}, {}, ())
