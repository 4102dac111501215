"""A language model in the role of policy or reference: log-probabilities of packed responses."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from prefloop.batches import PackedBatch
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone

LOGITS_PER_CHUNK = 1 << 24
"""The head runs on this many logits at a time (64 MiB in float32); whole logits never exist for a large vocabulary."""


@dataclass(frozen=True)
class TargetLogprobs:
    """Per counted response token: its log-probability (nats), and the entropy of its distribution (no gradient)."""

    logprobs: Float[Tensor, " target"]
    entropy: Float[Tensor, " target"]


class Policy:
    """What the algorithms ask of a language model. The algorithm cannot tell an adapter from a model of its own."""

    def __init__(
        self, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, *, adapter: str | None = None
    ) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.adapter = adapter

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name; with tied embeddings the head is among them once."""
        if self.adapter is not None:
            return self.backbone.parameters(self.adapter)
        return dict(self.backbone.model.named_parameters())

    def logprobs(self, batch: PackedBatch, *, temperature: float = 1.0) -> TargetLogprobs:
        """Log-probabilities of the counted response tokens under softmax(logits / temperature)."""
        batch = batch.to(self.device)
        hidden = self.backbone.hidden(batch, adapter=self.adapter)[batch.predictor_index]
        targets = batch.targets
        head = self.backbone.model.get_output_embeddings()
        chunk = max(1, LOGITS_PER_CHUNK // int(self.backbone.model.config.get_text_config().vocab_size))

        def scored(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
            with self.backbone.autocast():
                logits = head(states)
            logits = logits.float() / temperature
            normaliser = torch.logsumexp(logits, -1)
            logprob = logits.gather(-1, wanted[:, None])[:, 0] - normaliser
            with torch.no_grad():
                entropy = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
            return logprob, entropy

        if len(hidden) <= chunk:
            return TargetLogprobs(*scored(hidden, targets))
        parts = [
            checkpoint(scored, states, wanted, use_reentrant=False)
            for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return TargetLogprobs(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))

    def reference(self) -> "Policy":
        """This policy as it is now, frozen: the backbone with adapters off, or a copy under full fine-tuning.

        With an adapter this is the plain backbone, so it is the policy itself only while the adapter is fresh.
        """
        if self.adapter is not None:
            return Policy(self.backbone, self.tokenizer, adapter=None)
        return Policy(self.backbone.frozen_copy(), self.tokenizer)

    def save(self, folder: Path) -> None:
        """Weights (adapter merged), config, generation config and tokenizer: `AutoModelForCausalLM` reads them."""
        model = self.backbone.model
        config = model.config
        target = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        missing = target.base_model.load_state_dict(self.backbone.plain_state(self.adapter), strict=False)
        if missing.unexpected_keys:
            raise ModelError(f"the weights {missing.unexpected_keys[:3]} have no place in {type(target).__name__}")
        if not config.get_text_config().tie_word_embeddings:
            target.get_output_embeddings().load_state_dict(model.get_output_embeddings().state_dict())
        target.to(model.dtype)
        stops = self.tokenizer.eos_token_id
        target.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=stops,
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else stops,
        )
        target.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
