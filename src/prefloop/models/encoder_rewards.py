"""Encoders (BERT and its kin) as reward models: one score for a prompt with its response, read as a pair of texts.

An encoder reads both ways, so it cannot share the packed row of a decoder or its tokens: it has a tokenizer of its own,
text is what passes between policy and reward model, and it trains on padded rows. The model is transformers' own
`AutoModelForSequenceClassification` with one label, without dropout; head and pooling are the architecture's.
"""

import copy
import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prefloop.batches import BatchLayout, PaddedBatch
from prefloop.errors import ModelError
from prefloop.models.backbone import Precision, loading
from prefloop.randomness import derived_seed

SECOND_TEXT = "token_type_ids"
"""Says which tokens belong to the second text of a pair, where the architecture wants to know."""


class EncoderRewardModel:
    """An encoder with a head of one output. Raises ModelError for a model or a tokenizer that cannot be one."""

    layout: ClassVar[BatchLayout] = "padded"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, precision: Precision = "float32"
    ) -> None:
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id != model.config.pad_token_id:
            raise ModelError(
                f"{type(model).__name__} pads with token {model.config.pad_token_id} and its tokenizer with "
                f"{tokenizer.pad_token_id}: set both to one"
            )
        # No dropout in training either: as everywhere here, a score depends on the text alone.
        self.model = model.eval()
        self.precision: Precision = precision
        self.output = output_layer(model)
        takes_types = SECOND_TEXT in inspect.signature(model.forward).parameters
        self.uses_token_types = takes_types and SECOND_TEXT in tokenizer.model_input_names
        if not takes_types and SECOND_TEXT in tokenizer.model_input_names:
            # What the tokenizer hands out must be what the model takes, or nobody could call the two together.
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != SECOND_TEXT]
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def max_length(self) -> int | None:
        """The most tokens of a prompt with its response, where model or tokenizer says so."""
        limits = [self.tokenizer.model_max_length]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions:
            embeddings = getattr(self.model.base_model, "embeddings", None)
            padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
            # RoBERTa counts positions from behind the padding token's number.
            limits.append(positions - (padding + 1 if padding is not None else 0))
        return min(limits) if min(limits) < 1 << 30 else None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters by name."""
        return dict(self.model.named_parameters())

    def freeze(self) -> None:
        """No gradient reaches any weight from here on."""
        self.model.requires_grad_(False)

    def hidden(self, batch: PaddedBatch) -> Float[Tensor, "response width"]:
        """What the output layer reads, per response. Raises ModelError for a sequence beyond the model's positions."""
        batch = batch.to(self.device)
        length = batch.tokens.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ModelError(
                f"a sequence of {length} tokens is longer than the {self.max_length} positions of the encoder: set "
                f"max_length to {self.max_length} or less"
            )
        inputs = {
            "input_ids": torch.where(batch.is_token, batch.tokens, int(self.tokenizer.pad_token_id)),  # type: ignore[arg-type]
            "attention_mask": batch.is_token.long(),
        }
        if self.uses_token_types:
            inputs[SECOND_TEXT] = batch.is_second_text.long()
        read: list[Tensor] = []
        hook = self.output.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            with torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext():
                self.model(**inputs)
        finally:
            hook.remove()
        return read[0]

    def at_ends(
        self, batch: PaddedBatch, *, head_dropout: float = 0.0, hidden: Tensor | None = None
    ) -> Float[Tensor, " response"]:
        """One score per response.

        `head_dropout` drops that share of what the output layer reads, from torch's global random state. `hidden`
        spares the forward pass.
        """
        features = (hidden if hidden is not None else self.hidden(batch)).float()
        if head_dropout:
            features = torch.nn.functional.dropout(features, head_dropout)
        bias = None if self.output.bias is None else self.output.bias.float()
        return torch.nn.functional.linear(features, self.output.weight.float(), bias)[:, 0]

    def save(self, folder: Path) -> None:
        """Weights, config and tokenizer: plain transformers gives the same score for `tokenizer(prompt, response)`."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def is_encoder_type(model_type: str) -> bool:
    """Whether models of this type read both ways: transformers has a masked language model of it."""
    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_encoder(name_or_path: str) -> bool:
    """Whether a local folder or Hub name holds an encoder. Raises ModelError when its config cannot be had."""
    with loading(name_or_path, "model"):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    return (
        is_encoder_type(config.model_type)
        and not config.is_encoder_decoder
        and not getattr(config, "is_decoder", False)
    )


def load_encoder_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a local folder or a Hub name; an encoder's needs no end-of-sequence token."""
    with loading(name_or_path, "tokenizer"):
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)


def load_encoder(name_or_path: str, *, seed: int) -> PreTrainedModel:
    """An encoder in float32 with a new head that says 0 everywhere, safetensors only, without remote code.

    What the checkpoint does not have (layers between body and output) is drawn from the seed, whatever the global
    random state. The output layer is new in any case, also where the checkpoint is a classifier.
    """
    with loading(name_or_path, "encoder"), torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "encoder head"))
        model = AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            num_labels=1,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
        )
    return with_zero_output(model)


def with_zero_output(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its output layer set to zero."""
    output = output_layer(model)
    torch.nn.init.zeros_(output.weight)
    if output.bias is not None:
        torch.nn.init.zeros_(output.bias)
    return model


def output_layer(model: PreTrainedModel) -> torch.nn.Linear:
    """The head's last layer, which has one output. Raises ModelError for a model that has no such layer, or several."""
    body = {id(module) for module in model.base_model.modules()}
    found = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == 1 and id(module) not in body
    ]
    if len(found) != 1 or model.config.num_labels != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} output layers for one label: it is no sequence classifier that "
            "could be a reward model"
        )
    return found[0]
