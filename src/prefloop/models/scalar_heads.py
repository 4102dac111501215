"""One number per place: the reward model (read at the last response token) and the critic (read before every token)."""

import copy
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from prefloop.batches import BatchLayout, PackedBatch
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone, Precision, load_body

PADDING = "<|pad|>"


class ScalarModel:
    """A backbone with a linear head of one output, the shape of `AutoModelForSequenceClassification` with one label."""

    layout: ClassVar[BatchLayout] = "packed"

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerFast,
        *,
        adapter: str | None = None,
        head: torch.nn.Linear | None = None,
    ) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.head = head if head is not None else zero_head(backbone)

    @classmethod
    def from_classifier(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, precision: Precision = "float32"
    ) -> "ScalarModel":
        """A loaded one-label classifier as backbone and head."""
        head = getattr(model, "score", None)
        if not isinstance(head, torch.nn.Linear) or head.bias is not None:
            raise ModelError(
                f"{type(model).__name__} has no plain `score` layer: only decoders with a sequence classification head "
                "are read as reward models"
            )
        return cls(Backbone(model, precision=precision), tokenizer, head=head)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def width(self) -> int:
        return self.backbone.width

    @property
    def max_length(self) -> int | None:
        """The most tokens of a prompt with its response, where the model says so."""
        return self.backbone.max_length

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name: body or adapter, and always the head."""
        return {**self.backbone.parameters(self.adapter), "score.weight": self.head.weight}  # type: ignore[dict-item]

    def freeze(self) -> None:
        """No gradient reaches the head from here on, nor the body where this model has it for itself."""
        self.head.requires_grad_(False)
        if self.adapter is None:
            self.backbone.model.requires_grad_(False)

    def hidden(self, batch: PackedBatch) -> Float[Tensor, "token width"]:
        """The last hidden states of the packed row."""
        return self.backbone.hidden(batch, adapter=self.adapter)

    def at_ends(
        self, batch: PackedBatch, *, head_dropout: float = 0.0, hidden: Tensor | None = None
    ) -> Float[Tensor, " response"]:
        """One score per response, read at its last token (the end-of-sequence token when it ended).

        `head_dropout` drops that share of the hidden units, from torch's global random state. `hidden` [token, width]
        spares the forward pass where the batch's hidden states are at hand already.
        """
        batch = batch.to(self.device)
        return self._read(batch, batch.last_index, head_dropout=head_dropout, hidden=hidden)

    def before_targets(self, batch: PackedBatch) -> Float[Tensor, " target"]:
        """One value per counted response token, read before that token: V(s) of the state it was chosen in."""
        batch = batch.to(self.device)
        return self._read(batch, batch.predictor_index)

    def before_targets_and_at_ends(
        self, batch: PackedBatch
    ) -> tuple[Float[Tensor, " target"], Float[Tensor, " response"]]:
        """Both readings from one forward pass."""
        batch = batch.to(self.device)
        values = self._read(batch, torch.cat([batch.predictor_index, batch.last_index]))
        return values[: batch.num_targets], values[batch.num_targets :]

    def _read(
        self, batch: PackedBatch, places: Tensor, *, head_dropout: float = 0.0, hidden: Tensor | None = None
    ) -> Tensor:
        if hidden is None:
            hidden = self.hidden(batch)
        hidden = hidden[places].float()
        if head_dropout:
            hidden = torch.nn.functional.dropout(hidden, head_dropout)
        return torch.nn.functional.linear(hidden, self.head.weight.float())[:, 0]

    def save(self, folder: Path) -> None:
        """Weights (adapter merged), config and tokenizer: `AutoModelForSequenceClassification` gives the same scores.

        transformers finds the last token by looking for padding, so the padding token must not be the end token: a
        tokenizer without a padding token of its own gets one.
        """
        tokenizer = self.tokenizer
        config = type(self.backbone.model.config).from_dict(self.backbone.model.config.to_dict())
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
        load_body(model, self.backbone.plain_state(self.adapter))
        with torch.no_grad():
            model.score.weight.copy_(self.head.weight)
        model.to(self.backbone.model.dtype)
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.add_special_tokens({"pad_token": PADDING})
            if len(tokenizer) > config.get_text_config().vocab_size:
                num_known = config.get_text_config().vocab_size
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
                with torch.no_grad():
                    # Nothing reads the padding token, and a random row would make every save another one.
                    model.get_input_embeddings().weight[num_known:] = 0.0
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def zero_head(backbone: Backbone) -> torch.nn.Linear:
    """A head that starts by saying 0 everywhere."""
    head = torch.nn.Linear(backbone.width, 1, bias=False, device=backbone.device)
    torch.nn.init.zeros_(head.weight)
    return head
