"""Small models made here and now, with a tokenizer trained on the data, for when no pretrained model is at hand."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prefloop.errors import ModelError
from prefloop.models.backbone import switch_off_dropout

Architecture = Literal["llama", "gpt2", "qwen2", "qwen3", "gpt_neox"]

PAD, END = "<|pad|>", "<|end|>"
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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, END, *ROLES],
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )


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
    if hidden_size % num_heads:
        raise ModelError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}: choose another pair")
    wide = intermediate_size or 4 * hidden_size
    sizes: dict[str, int | bool] = {
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
