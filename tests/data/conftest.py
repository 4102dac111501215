"""Tokenizers trained on a few sentences: no file and no network needed."""

from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The film is a warm and funny story about people who find each other again.",
    "Human: How should I store coffee?\n\nAssistant: In a cool, dry place.",
    "user assistant system think hello world good bad answer question 0 1 2 3",
]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""Trims contents, as several published templates do, and opens an answer with an added token that is not special."""

PREFIXED = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Opens with the start token; every rendering of a conversation starts with the rendering of its beginning."""


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    """Byte-level BPE with chat markers, one added marker that is not special, and added runs of spaces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("    ", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<|endoftext|>"],
        clean_up_tokenization_spaces=False,
        **options,
    )


def prefixed_words() -> PreTrainedTokenizerFast:
    """Like the Llama family: every encoded text gets a word mark in front, and decoding strips one space."""
    characters = sorted({character for sentence in SENTENCES for character in sentence if character != " "})
    merges = [("▁", "g"), ("o", "o"), ("oo", "d"), ("▁g", "ood")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return byte_level


@pytest.fixture(scope="session")
def conversation_template() -> str:
    return PREFIXED


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(chat_template=CHATML)


@pytest.fixture(scope="session")
def conversation_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(chat_template=PREFIXED, bos_token="<s>")


@pytest.fixture(scope="session")
def prefixed_tokenizer() -> PreTrainedTokenizerFast:
    return prefixed_words()
