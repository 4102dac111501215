"""Small random encoders of four families, each with a tokenizer of its family's own kind."""

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertTokenizer,
    DistilBertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

FAMILIES = ("distilbert", "bert", "roberta", "modernbert")
POSITIONS = 64

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}


@functools.cache
def encoder_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Word pieces for DistilBERT and BERT, which lower-case; bytes for RoBERTa and ModernBERT."""
    if family in ("distilbert", "bert"):
        letters = "abcdefghijklmnopqrstuvwxyz"
        marks = "[]<>/:.,!?"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *marks, *(f"##{one}" for one in letters)]
        vocabulary = {word: number for number, word in enumerate([*words, "good", "bad", "film", "human"])}
        return (DistilBertTokenizer if family == "distilbert" else BertTokenizer)(vocab=vocabulary)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if family == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        return RobertaTokenizer(vocab={one: number for number, one in enumerate([*special, *alphabet])}, merges=[])
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    backend.train_from_iterator(
        ["good film", "bad film"],
        trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=270, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_encoder(family: str, *, masked: bool = False, **changes: object) -> PreTrainedModel:
    """Always the same weights; a classifier with one label, or `masked` the language model that one starts from."""
    tokenizer = encoder_tokenizer(family)
    sizes = dict(SIZES)
    if family == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
        sizes |= {"max_position_embeddings": POSITIONS, "initializer_range": 0.2}
    if family == "roberta":
        sizes["max_position_embeddings"] = POSITIONS + 2
    if family == "modernbert":
        sizes |= {"num_hidden_layers": 3, "local_attention": 8, "global_attn_every_n_layers": 2}
    labels = {} if masked else {"num_labels": 1}
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        bos_token_id=special["cls_token_id"],
        eos_token_id=special["sep_token_id"],
        **{**special, **sizes, **labels, **changes},
    )
    made = AutoModelForMaskedLM if masked else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = made.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_encoder(folder: Path, family: str, *, masked: bool = True, **changes: object) -> Path:
    """A folder as anybody would save one."""
    tiny_encoder(family, masked=masked, **changes).save_pretrained(folder)
    encoder_tokenizer(family).save_pretrained(folder)
    return folder
