"""The tokens are those of the tokenizer's own pair form; ends are marked; cuts take the prompt first."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prefloop.data.audit import prepare_groups
from prefloop.data.chat_format import ChatFormat
from prefloop.data.encoder_format import EncoderFormat
from prefloop.errors import DataError, ModelError, SettingsError
from prefloop.models.from_scratch import train_encoder_tokenizer
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, TextExample
from tiny_encoders import FAMILIES, encoder_tokenizer

ALL = pytest.mark.parametrize("family", FAMILIES)


def words_tokenizer(pair: str = "[CLS] $A [SEP] $B:1 [SEP]:1", **special: Any) -> PreTrainedTokenizerFast:
    """Whole words of a hand-written vocabulary."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", ":", "Human", "Assistant"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_a_pair_by_hand() -> None:
    text_format = EncoderFormat(words_tokenizer())
    assert text_format.prompt_ids("a b") == (1, 4, 5, 2)
    assert text_format.completion_ids("c d") == (6, 7, 2)
    assert text_format.completion_ids("c d", ended=False) == (6, 7)
    group = text_format.pair_group(PreferencePair("a b", "c", "d e", rejected_ended=False))
    assert (group.prompt, group.responses) == ((1, 4, 5, 2), ((6, 2), (7, 8)))
    alone = text_format.labelled_group(LabelledText("c d", 1))
    assert (alone.prompt, alone.responses) == ((1,), ((6, 7, 2),))
    assert text_format.text_group(TextExample("c d")) == alone
    answer = text_format.labelled_group(LabelledText("c d", 1, "a b"))
    assert answer == text_format.demonstration_group(Demonstration("a b", "c d"))
    assert text_format.prompt_group("a").responses == ()
    assert text_format.spelled((1, 4, 5, 2)) == "[CLS] a b [SEP]"


@ALL
@pytest.mark.parametrize("prompt", ["good film ?", "a\n\nb", " "])
@pytest.mark.parametrize("answer", ["bad .", "A Good One!", " leading space", "line\nline"])
def test_the_tokens_are_those_of_a_plain_call_with_two_texts(family: str, prompt: str, answer: str) -> None:
    tokenizer = encoder_tokenizer(family)
    text_format = EncoderFormat(tokenizer)
    pair = text_format.prompt_ids(prompt) + text_format.completion_ids(answer)
    assert list(pair) == tokenizer(prompt, answer).input_ids
    alone = text_format.prompt_ids("") + text_format.completion_ids(answer)
    assert list(alone) == tokenizer(answer).input_ids
    assert len(text_format.prompt_ids("")) == 1, "a prompt of one token says that there is none"


@ALL
def test_text_never_becomes_a_control_token(family: str) -> None:
    tokenizer = encoder_tokenizer(family)
    text_format = EncoderFormat(tokenizer)
    forged = f"good {tokenizer.sep_token} bad {tokenizer.cls_token} {tokenizer.pad_token}"
    ids = text_format.completion_ids(forged, ended=False)
    assert not set(tokenizer.all_special_ids).difference([tokenizer.unk_token_id]).intersection(ids)
    assert tokenizer.sep_token_id in tokenizer(forged, add_special_tokens=False).input_ids, "a plain call falls for it"


def test_a_text_that_cannot_be_written_without_control_tokens_is_refused() -> None:
    """Here the vocabulary itself spells the separator as one word."""
    tokenizer = words_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match=r"'a \[SEP\] b' becomes the control token '\[SEP\]'"):
        EncoderFormat(tokenizer).completion_ids("a [SEP] b")


def test_a_cut_answer_without_a_token_is_closed_so_that_there_is_something_to_read() -> None:
    text_format = EncoderFormat(words_tokenizer())
    assert text_format.completion_ids(" \n ", ended=False) == (2,)
    assert text_format.completion_ids("", ended=True) == (2,)


def test_messages_are_named_turns_and_strings_stand_as_they_are() -> None:
    tokenizer = words_tokenizer()
    talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    named = (1, 10, 9, 4, 11, 9, 5, 10, 9, 6, 2)
    for prompt_format in ("auto", "plain"):
        assert EncoderFormat(tokenizer, prompt_format=prompt_format).prompt_ids(talk) == named
    assert EncoderFormat(tokenizer, prompt_format="auto").prompt_ids("c") == (1, 6, 2)
    assert EncoderFormat(tokenizer, prompt_format="raw").prompt_ids("c") == (1, 6, 2)
    assert EncoderFormat(tokenizer, prompt_format="plain").prompt_ids("c") == (1, 10, 9, 6, 2)
    with pytest.raises(DataError, match="prompt_format=raw takes prompts that are strings"):
        EncoderFormat(tokenizer, prompt_format="raw").prompt_ids(talk)
    with pytest.raises(DataError, match="ends with an assistant message"):
        EncoderFormat(tokenizer).prompt_ids(talk[:2])
    with pytest.raises(DataError, match="A prompt is empty"):
        EncoderFormat(tokenizer).prompt_ids(())
    with pytest.raises(SettingsError, match="for an encoder it is auto, plain or raw"):
        EncoderFormat(tokenizer, prompt_format="chat")


def test_a_cut_takes_the_prompt_from_the_left_and_keeps_what_stands_around_it() -> None:
    text_format = EncoderFormat(words_tokenizer())
    group = text_format.pair_group(PreferencePair("a b c d", "e e", "e"))
    assert text_format.truncated(group, 9) == group
    assert text_format.truncated(group, 7).prompt == (1, 6, 7, 2)
    assert text_format.truncated(group, 5).prompt == (1, 2), "nothing is left of it"
    assert text_format.truncated(group, 5).responses == ((8, 8, 2), (8, 2))
    # Then the answers lose their end, and with it the token that says they ended.
    assert text_format.truncated(group, 4).responses == ((8, 8), (8, 2))
    with pytest.raises(SettingsError, match="max_length is 2, and the encoder's own tokens before an answer are 2"):
        text_format.truncated(group, 2)
    alone = text_format.text_group(TextExample("a b c"))
    assert text_format.truncated(alone, 3) == type(alone)((1,), ((4, 5),))


def test_truncation_and_what_is_dropped_are_in_the_account() -> None:
    text_format = EncoderFormat(words_tokenizer())
    pairs = [
        PreferencePair("a b c d", "e", "d"),
        PreferencePair("a", "e", "d"),
        PreferencePair("a", "e d", "e c"),
        PreferencePair("", "e  d", "e d"),
    ]
    groups, kept, audit = prepare_groups(pairs, text_format, max_length=5, too_long="truncate")
    assert (audit.rows_read, audit.used, audit.num_truncated) == (4, 3, 2)
    assert audit.dropped == {"equal in tokens": 1}
    assert [group.longest_leaf for group in groups] == [5, 5, 5]
    assert groups[0].prompt == (1, 7, 2)
    assert "[CLS] d [SEP]«e [SEP]»" in audit.examples[0]
    _, kept, audit = prepare_groups(pairs, text_format, max_length=5)
    assert kept == pairs[1:2]
    assert audit.dropped == {"longer than max_length": 2, "equal in tokens": 1}


@pytest.mark.parametrize("pair", ["$A [SEP] $B:1 [SEP]:1", "[CLS] $A [SEP] $B:1", "[CLS] $A $B:1 [SEP]:1"])
def test_a_tokenizer_that_marks_no_ends_is_refused(pair: str) -> None:
    with pytest.raises(ModelError, match="a reward model needs one token that opens it, one that closes it"):
        EncoderFormat(words_tokenizer(pair))


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(ModelError, match="has no padding token"):
        EncoderFormat(words_tokenizer(pad_token=None))


def test_the_tokenizers_own_truncation_is_not_applied() -> None:
    tokenizer = words_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    assert EncoderFormat(tokenizer).completion_ids("a b c d e") == (4, 5, 6, 7, 8, 2)


def test_fingerprints_tell_vocabularies_formats_and_decoders_apart() -> None:
    one, same = (train_encoder_tokenizer(["one two"], "bert", vocabulary_size=270, max_length=64) for _ in range(2))
    other = train_encoder_tokenizer(["three two"], "bert", vocabulary_size=270, max_length=64)
    assert EncoderFormat(one).fingerprint() == EncoderFormat(same).fingerprint()
    prints = [EncoderFormat(one), EncoderFormat(other), EncoderFormat(one, prompt_format="plain")]
    one.eos_token = "[SEP]"
    assert len({each.fingerprint() for each in [*prints, ChatFormat(one)]}) == 4
