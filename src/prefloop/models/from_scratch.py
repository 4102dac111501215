"""Small models made here and now, with a tokenizer trained on the data, for when no pretrained model is at hand."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prefloop.errors import ModelError
from prefloop.models.backbone import switch_off_dropout
from prefloop.models.encoder_rewards import with_zero_output

Architecture = Literal["llama", "gpt2", "qwen2", "qwen3", "gpt_neox"]
EncoderArchitecture = Literal["distilbert", "bert", "roberta", "modernbert"]

PAD, END = "<|pad|>", "<|end|>"
OPENING, SEPARATOR = "[CLS]", "[SEP]"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SENTENCE = re.compile(r"\n\d+\.|[^\n.!?]+[.!?]*|\n|[.!?]+")
"""What may become one token as a whole: a list number, a sentence with its full stop."""


def train_tokenizer(
    texts: Sequence[str], *, vocabulary_size: int, sentence_min_count: int | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template and the special tokens that it needs; any text round-trips.

    With `sentence_min_count`, a sentence (or list number) that the texts hold at least so many times becomes one token,
    on top of `vocabulary_size`. Where a small world repeats its sentences, an answer then is a dozen tokens instead of
    a hundred; merging across spaces is what SuperBPE (Liu et al. 2025, arXiv:2503.13423) does for large ones.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(
            texts, [PAD, END, *ROLES], vocabulary_size=vocabulary_size, sentence_min_count=sentence_min_count
        ),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )


def train_encoder_tokenizer(
    texts: Sequence[str],
    architecture: EncoderArchitecture,
    *,
    vocabulary_size: int,
    max_length: int,
    sentence_min_count: int | None = None,
) -> PreTrainedTokenizerFast:
    """The same byte-level BPE for an encoder: `[CLS] text [SEP]`, and `[CLS] text [SEP] text [SEP]` for a pair.

    A word has the same tokens at the start of a text as inside it.
    """
    backend = _byte_pairs(
        texts,
        [PAD, OPENING, SEPARATOR],
        vocabulary_size=vocabulary_size,
        sentence_min_count=sentence_min_count,
        add_prefix_space=True,
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{OPENING} $A {SEPARATOR}",
        pair=f"{OPENING} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(token, int(backend.token_to_id(token))) for token in (OPENING, SEPARATOR)],  # type: ignore[arg-type]
    )
    token_types = ["token_type_ids"] if architecture == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        cls_token=OPENING,
        sep_token=SEPARATOR,
        model_max_length=max_length,
        model_input_names=["input_ids", *token_types, "attention_mask"],
    )


def _byte_pairs(
    texts: Sequence[str],
    special_tokens: list[str],
    *,
    vocabulary_size: int,
    sentence_min_count: int | None,
    add_prefix_space: bool = False,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if sentence_min_count is not None:
        counts = Counter(piece for text in texts for piece in SENTENCE.findall(text))
        frequent = sorted(
            piece
            for piece, count in counts.items()
            if count >= sentence_min_count and len(piece) > 2 and _survives(piece)
        )
        tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in frequent])
    return tokenizer


def _survives(piece: str) -> bool:
    """Whether the byte-level decoder gives the piece back; without a space it reads the é of "Olé" as a byte."""
    return decoders.ByteLevel().decode([piece]) == piece


def new_model(
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_length: int,
    seed: int,
    intermediate_size: int | None = None,
) -> PreTrainedModel:
    """A decoder with random weights of the named architecture, embeddings tied, without dropout.

    The same seed gives the same weights. Raises ModelError when the heads do not divide the width.
    """
    _require_whole_heads(hidden_size, num_heads)
    wide = intermediate_size or 4 * hidden_size
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "intermediate_size": wide,
        "max_position_embeddings": max_length,
    }
    if architecture == "gpt2":
        sizes = {
            "n_embd": hidden_size,
            "n_layer": num_layers,
            "n_head": num_heads,
            "n_inner": wide,
            "n_positions": max_length,
        }
    if architecture == "qwen3":
        sizes["head_dim"] = hidden_size // num_heads
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    switch_off_dropout(model)
    return model


def new_encoder(
    architecture: EncoderArchitecture,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_length: int,
    seed: int,
    intermediate_size: int | None = None,
) -> PreTrainedModel:
    """An encoder with random weights of the named architecture and a head of one output that says 0 everywhere.

    The same seed gives the same weights. Raises ModelError when the heads do not divide the width.
    """
    _require_whole_heads(hidden_size, num_heads)
    wide = intermediate_size or 4 * hidden_size
    pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": wide,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": max_length,
    }
    if architecture == "distilbert":
        sizes = {
            "dim": hidden_size,
            "hidden_dim": wide,
            "n_layers": num_layers,
            "n_heads": num_heads,
            "max_position_embeddings": max_length,
        }
    if architecture == "roberta":
        # It counts positions from behind the padding token's number.
        sizes |= {"max_position_embeddings": max_length + pad + 1, "type_vocab_size": 1}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=pad,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        num_labels=1,
        # The usual 0.02 is meant for a width of 768; a narrow encoder that starts so small says the same of every text.
        initializer_range=0.02 * (768 / hidden_size) ** 0.5,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return with_zero_output(model)


def _require_whole_heads(hidden_size: int, num_heads: int) -> None:
    if hidden_size % num_heads:
        raise ModelError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}: choose another pair")
