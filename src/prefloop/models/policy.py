"""A language model in the role of policy or reference: log-probabilities of packed responses."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from prefloop.batches import AttentionLayout, PackedBatch, RowBucket
from prefloop.errors import ModelError
from prefloop.formulas.logprobs import token_logprobs
from prefloop.models.backbone import Backbone, head_of, load_body

LOGITS_PER_CHUNK = 1 << 24
"""The head runs on this many logits at a time (64 MiB in float32); whole logits never exist for a large vocabulary."""

PROBE_TOLERANCE_NATS = 1e-3
"""How far a packed log-probability may be from the plain one; rounding in float32 stays a hundred times below."""


@dataclass(frozen=True)
class TargetLogprobs:
    """Per counted response token: its log-probability (nats), and the entropy of its distribution (no gradient)."""

    logprobs: Float[Tensor, " target"]
    entropy: Float[Tensor, " target"]


class Policy:
    """What the algorithms ask of a language model. The algorithm cannot tell an adapter from a model of its own."""

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, *, adapter: str | None = None) -> None:
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

    def logprobs(self, batch: PackedBatch, *, temperature: float = 1.0, hidden: Tensor | None = None) -> TargetLogprobs:
        """Log-probabilities of the counted response tokens under softmax(logits / temperature).

        `hidden` [token, width] spares the forward pass where the batch's hidden states are at hand already.
        """
        batch = batch.to(self.device)
        if hidden is None:
            hidden = self.backbone.hidden(batch, adapter=self.adapter)
        hidden = hidden[batch.predictor_index]
        targets = batch.targets
        head = self.backbone.head
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
        # A copy: building a model from a config writes the attention's name into it, and this one's is our own.
        config = copy.deepcopy(model.config)
        target = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        load_body(target, self.backbone.plain_state(self.adapter))
        if not config.get_text_config().tie_word_embeddings:
            head_of(target).load_state_dict(self.backbone.head.state_dict())
        target.to(model.dtype)
        stops = self.tokenizer.eos_token_id
        target.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=stops,
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else stops,
        )
        target.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@torch.no_grad()
def probe(policy: Policy) -> None:
    """Tries the packed path on two responses to one prompt, against each sequence alone in the model's own forward.

    Both run in float32, whatever the policy's precision. Raises ModelError when a log-probability differs by more than
    `PROBE_TOLERANCE_NATS`: an architecture that does not take its attention from transformers' attention interface, or
    that changes its logits after the head, would otherwise train on wrong numbers.
    """
    model = policy.backbone.model
    name = type(model).__name__
    vocabulary = int(model.config.get_text_config().vocab_size)
    # Consecutive multiples of a prime: distinct tokens for any vocabulary, the same on every machine.
    tokens = torch.tensor([(place + 1) * 7919 % vocabulary for place in range(11)])
    batch = _siblings(tokens, length_of_prompt=5, length_of_response=3)
    leaves = [torch.cat([tokens[:5], tokens[5:8]]), torch.cat([tokens[:5], tokens[8:]])]
    try:
        packed = Policy(Backbone(model), policy.tokenizer).logprobs(batch).logprobs
        alone = torch.cat([_plain_logprobs(model, leaf.to(model.device))[4:] for leaf in leaves])
    except (TypeError, ValueError, RuntimeError, AttributeError) as problem:
        raise ModelError(
            f"{name} cannot run over packed sequences ({problem}): choose another architecture"
        ) from problem
    gap = float((packed - alone).abs().max())
    if not gap <= PROBE_TOLERANCE_NATS:
        raise ModelError(
            f"{name} gives log-probabilities over packed sequences that are {gap:.2g} nats away from each sequence "
            "alone, so training would learn from wrong numbers: choose another architecture"
        )


def _plain_logprobs(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Of every token but the first, by the model's own forward pass."""
    return token_logprobs(model(input_ids=tokens[None], use_cache=False).logits[0, :-1], tokens[1:])


def _siblings(tokens: Tensor, *, length_of_prompt: int, length_of_response: int) -> PackedBatch:
    """A prompt with two responses of one length, packed by hand."""
    prompt = torch.arange(length_of_prompt)
    first = torch.arange(length_of_response) + length_of_prompt
    second = first + length_of_response
    row = length_of_prompt + length_of_response
    bucket = RowBucket(torch.cat([prompt, first, prompt, second]), num_rows=2, length=row)
    return PackedBatch(
        tokens=tokens,
        positions=torch.cat([prompt, first, first]),
        layout=AttentionLayout((bucket,), torch.cat([prompt, first, first + row]), longest_leaf=row),
        target_index=torch.cat([first, second]),
        predictor_index=torch.cat([first - 1, prompt[-1:], second[:-1]]),
        segment=torch.repeat_interleave(torch.arange(2), length_of_response),
        last_index=torch.stack([first[-1], second[-1]]),
        num_tokens=len(tokens),
    )
