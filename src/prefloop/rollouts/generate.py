"""The decode loop: prompts in tokens to completions with the log-probability of every sampled token.

Mixed prompt lengths are padded on the left behind an explicit mask; keys and values go into a preallocated cache;
finished rows leave the batch once a quarter of it is done. Sampling inverts the cumulative distribution at uniform
draws that are made before the loop, one per row and place, so a row's randomness does not depend on its neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from prefloop.contracts import Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.errors import ModelError
from prefloop.models.policy import Policy
from prefloop.records import Completion

COMPACT_SHARE = 0.25
"""Finished rows are removed when they make up this share of the batch."""


class PreallocatedLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place; only the filled part is handed to attention."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.capacity, width)
        self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep_rows(self, rows: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.capacity


@dataclass(frozen=True)
class Draw:
    """One decoding step's outcome per row."""

    tokens: Tensor
    logprobs: Tensor


def filtered_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits over temperature with everything outside top_k and top_p at minus infinity. [row, vocabulary]

    top_p keeps the smallest set of most likely tokens whose probability reaches it, by a full sort. At temperature 0
    the logits come back as they are: greedy decoding needs no filter, and what it records is the model's own.
    """
    if sampling.temperature == 0.0:
        return logits.float()
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < kept, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(-1, descending=True)
        before = torch.softmax(ordered, -1).cumsum(-1) - torch.softmax(ordered, -1)
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(outside, float("-inf"))
    return logits


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Draw:
    """Samples one token per row at the given uniform numbers in [0, 1); greedy at temperature 0.

    The log-probability is the sampled token's under the distribution it was drawn from; for greedy decoding, which
    has none, it is the model's own at temperature 1.
    """
    logits = filtered_logits(logits, sampling)
    logprobs = torch.log_softmax(logits, -1)
    if sampling.temperature == 0.0:
        tokens = logits.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        total = cumulative[:, -1:].contiguous()
        tokens = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
        # Rounding may carry the draw to the very end: the last token that is possible is where the sum is reached.
        tokens = torch.minimum(tokens, torch.searchsorted(cumulative, total))[:, 0]
    return Draw(tokens, logprobs.gather(-1, tokens[:, None])[:, 0])


class PolicyGenerator:
    """The `Generator` that runs a `Policy` of ours. `batch_size` prompts are decoded together."""

    def __init__(self, policy: Policy, chat_format: ChatFormat, *, batch_size: int = 256) -> None:
        self.policy = policy
        self.chat_format = chat_format
        self.batch_size = batch_size

    def generate(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, random: torch.Generator
    ) -> list[Completion]:
        """One completion per prompt, in the order of the prompts. Raises ModelError when the context is too short."""
        self._check_lengths(prompts, sampling)
        uniform = torch.rand(len(prompts), sampling.max_new_tokens, generator=random)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            rows = self._decode([prompts[number] for number in members], uniform[members], sampling)
            for number, (tokens, logprobs) in zip(members, rows, strict=True):
                completions[number] = Completion(
                    text=self.chat_format.decode(tokens),
                    ended=tokens[-1] == self.chat_format.eos_id,
                    token_ids=tuple(tokens),
                    logprobs=tuple(logprobs),
                )
        return [completions[number] for number in range(len(prompts))]

    def stream(self, prompt: Sequence[int], *, sampling: Sampling, random: torch.Generator) -> Iterator[int]:
        """The tokens of one completion as they are drawn, the end token included."""
        self._check_lengths([prompt], sampling)
        uniform = torch.rand(1, sampling.max_new_tokens, generator=random)
        for step in _Decoding(self.policy, [prompt], uniform, sampling, self.chat_format.eos_id).steps():
            yield int(step.tokens[0])

    @property
    def context_length(self) -> int | None:
        """The most tokens that a prompt and its completion may have together, where the model sets a limit."""
        config = self.policy.backbone.model.config.get_text_config()
        limits = [self.policy.backbone.max_length, getattr(config, "sliding_window", None)]
        return min((number for number in limits if number), default=None)

    def has_room(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether the model can read the prompt and write so many tokens after it."""
        limit = self.context_length
        return limit is None or len(prompt) + max_new_tokens <= limit

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest = max((len(prompt) for prompt in prompts), default=0) + sampling.max_new_tokens
        limit = self.context_length
        if limit is not None and longest > limit:
            raise ModelError(
                f"the longest prompt and max_new_tokens make {longest} tokens, but the model has room for {limit}: "
                "shorten the prompts (max_length) or lower max_new_tokens"
            )

    def _decode(
        self, prompts: Sequence[Sequence[int]], uniform: Tensor, sampling: Sampling
    ) -> list[tuple[list[int], list[float]]]:
        decoding = _Decoding(self.policy, prompts, uniform, sampling, self.chat_format.eos_id)
        for _ in decoding.steps():
            pass
        return decoding.rows()


class _Decoding:
    """One batch on its way: which rows are still alive, their cache, and what was drawn."""

    def __init__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], uniform: Tensor, sampling: Sampling, eos_id: int
    ) -> None:
        self.policy = policy
        self.sampling = sampling
        self.eos_id = eos_id
        self.uniform = uniform.to(policy.device)
        self.num_rows = len(prompts)
        # A prompt that is asked for several samples is read once; its cache is copied to all its rows.
        different = {tuple(prompt): number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        self.prompt_of_row = torch.tensor([different[tuple(prompt)] for prompt in prompts], device=policy.device)
        self.width = max(len(prompt) for prompt in prompts)
        lengths = torch.tensor([len(prompt) for prompt in different])
        self.tokens = torch.full((len(different), self.width), eos_id)
        for number, prompt in enumerate(different):
            self.tokens[number, self.width - len(prompt) :] = torch.tensor(prompt)
        place = torch.arange(self.width)
        self.is_real = (place[None] >= (self.width - lengths)[:, None]).to(policy.device)
        self.positions = (place[None] - (self.width - lengths)[:, None]).clamp(min=0).to(policy.device)
        self.tokens = self.tokens.to(policy.device)
        capacity = self.width + sampling.max_new_tokens
        num_layers = policy.backbone.model.config.get_text_config().num_hidden_layers
        self.layers = [PreallocatedLayer(capacity) for _ in range(num_layers)]
        self.cache = Cache(layers=list(self.layers))
        self.alive = torch.arange(self.num_rows, device=policy.device)
        self.drawn = torch.full((self.num_rows, sampling.max_new_tokens), -1, device=policy.device)
        self.logprobs = torch.zeros(self.num_rows, sampling.max_new_tokens, device=policy.device)

    def steps(self) -> Iterator[Draw]:
        """Decodes until every row has ended or the limit is reached. `alive` rows are drawn for."""
        logits = self._forward(self.tokens, self.positions, self._prompt_mask())
        next_position = self.positions[:, -1] + 1
        if len(logits) < self.num_rows:
            logits, next_position = logits[self.prompt_of_row], next_position[self.prompt_of_row]
            self.is_real = self.is_real[self.prompt_of_row]
            for layer in self.layers:
                layer.keep_rows(self.prompt_of_row)
        finished = torch.zeros(self.num_rows, dtype=torch.bool, device=self.tokens.device)
        for place in range(self.sampling.max_new_tokens):
            step = draw(logits, self.uniform[self.alive, place], self.sampling)
            open_rows = self.alive[~finished]
            self.drawn[open_rows, place] = step.tokens[~finished]
            self.logprobs[open_rows, place] = step.logprobs[~finished]
            yield step
            finished = finished | (step.tokens == self.eos_id)
            if bool(finished.all()) or place + 1 == self.sampling.max_new_tokens:
                return
            tokens = step.tokens
            if float(finished.float().mean()) >= COMPACT_SHARE:
                kept = (~finished).nonzero()[:, 0]
                tokens, next_position, finished = tokens[kept], next_position[kept], finished[kept]
                self.alive, self.is_real = self.alive[kept], self.is_real[kept]
                for layer in self.layers:
                    layer.keep_rows(kept)
            self.is_real = torch.cat([self.is_real, torch.ones_like(tokens, dtype=torch.bool)[:, None]], 1)
            logits = self._forward(tokens[:, None], next_position[:, None], self.is_real[:, None, None, :])
            next_position = next_position + 1

    def rows(self) -> list[tuple[list[int], list[float]]]:
        """Per prompt the drawn tokens, up to and with the end token, and their log-probabilities."""
        drawn, logprobs = self.drawn.tolist(), self.logprobs.tolist()
        result = []
        for tokens, scores in zip(drawn, logprobs, strict=True):
            length = tokens.index(-1) if -1 in tokens else len(tokens)
            result.append((tokens[:length], scores[:length]))
        return result

    def _prompt_mask(self) -> Tensor:
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=self.tokens.device).tril()
        mask = causal[None, None] & self.is_real[:, None, None, :]
        # A padding place attends to itself: with nothing to attend to it would turn into NaN and spread.
        return mask | torch.eye(self.width, dtype=torch.bool, device=self.tokens.device)

    # Not around the loop above: it yields, and the caller must not find its own gradients switched off in between.
    @torch.inference_mode()
    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        backbone = self.policy.backbone
        with backbone.using(self.policy.adapter), backbone.autocast():
            out = backbone.body(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
            )
            return backbone.head(out.last_hidden_state[:, -1])
