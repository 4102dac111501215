"""Frozen tensor records: the packed batch, and the padded one that encoders read. Shapes are checked when one is made.

A packed batch is one row of tokens made of *groups*. A group is a prompt followed by its responses (one for SFT and
PPO, two for a preference pair, any number for several samples). Each response attends to the prompt and to itself,
never to a sibling, and its positions continue from the prompt. A *leaf* is one prompt with one of its responses: what a
padded layout would call a sequence.

Axes: `token` is a place in the row, `target` a response token that is learned from or scored, `response` a response.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BatchLayout = Literal["packed", "padded"]
"""How a model wants its sequences: decoders as one packed row, encoders as padded rows."""


@dataclass(frozen=True)
class TokenGroup:
    """A tokenised prompt with its responses, before packing.

    `supervised` marks, for each response, the tokens that count (all of them when None): a conversation with several
    assistant turns is one response in which only the assistant's tokens are supervised.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    supervised: tuple[tuple[bool, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(
                "a group needs at least one prompt token, because the first response token is predicted from it"
            )
        if any(not response for response in self.responses):
            raise ValueError("a group has an empty response")
        if self.supervised is not None and [len(mask) for mask in self.supervised] != [len(r) for r in self.responses]:
            raise ValueError("the supervised masks and the responses differ in length")

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(response) for response in self.responses)

    @property
    def num_targets(self) -> int:
        """Response tokens that count."""
        if self.supervised is not None:
            return sum(sum(mask) for mask in self.supervised)
        return sum(len(response) for response in self.responses)

    @property
    def longest_leaf(self) -> int:
        return len(self.prompt) + max((len(response) for response in self.responses), default=0)


@dataclass(frozen=True)
class RowBucket:
    """Leaves of similar length laid out as `num_rows` rows of `length`, for attention only.

    `token_index` [num_rows * length] points into the packed row; padding points at token 0, behind a causal mask.
    """

    token_index: Int[Tensor, " place"]
    num_rows: int
    length: int


@dataclass(frozen=True)
class AttentionLayout:
    """Who attends to whom: the leaves as buckets of rows, and for each token one place in them to read back from."""

    buckets: tuple[RowBucket, ...]
    back: Int[Tensor, " token"]
    longest_leaf: int

    def to(self, device: torch.device) -> "AttentionLayout":
        buckets = tuple(RowBucket(b.token_index.to(device), b.num_rows, b.length) for b in self.buckets)
        return AttentionLayout(buckets, self.back.to(device), self.longest_leaf)


@dataclass(frozen=True)
class PackedBatch:
    """Groups in one row, with the indices that a loss needs.

    target_index      where each counted response token stands in the row
    predictor_index   where the hidden state stands that predicts it (the token before it in its leaf)
    segment           which response it belongs to, non-decreasing
    last_index        where each response's last token stands (scalar heads read there)
    num_tokens        real tokens, without the tail that rounds the row up
    """

    tokens: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    layout: AttentionLayout
    target_index: Int[Tensor, " target"]
    predictor_index: Int[Tensor, " target"]
    segment: Int[Tensor, " target"]
    last_index: Int[Tensor, " response"]
    num_tokens: int

    def __post_init__(self) -> None:
        if self.tokens.shape != self.positions.shape or self.layout.back.shape != self.tokens.shape:
            raise ValueError("tokens, positions and layout of a packed batch differ in length")
        if not (self.target_index.shape == self.predictor_index.shape == self.segment.shape):
            raise ValueError("the target indices of a packed batch differ in length")

    @property
    def targets(self) -> Int[Tensor, " target"]:
        """The counted response tokens themselves."""
        return self.tokens[self.target_index]

    @property
    def num_responses(self) -> int:
        return len(self.last_index)

    @property
    def num_targets(self) -> int:
        return len(self.target_index)

    def to(self, device: torch.device) -> "PackedBatch":
        if self.tokens.device == device:
            return self
        return PackedBatch(
            self.tokens.to(device),
            self.positions.to(device),
            self.layout.to(device),
            self.target_index.to(device),
            self.predictor_index.to(device),
            self.segment.to(device),
            self.last_index.to(device),
            self.num_tokens,
        )


@dataclass(frozen=True)
class PaddedBatch:
    """One sequence per row, padded at the end: what encoders read. Rows are responses, in the order of their groups.

    tokens            the tokens; 0 where there is none
    is_token          False on padding
    is_second_text    True on the response (its closing token included) where the row holds a prompt before it
    """

    tokens: Int[Tensor, "response place"]
    is_token: Bool[Tensor, "response place"]
    is_second_text: Bool[Tensor, "response place"]

    def __post_init__(self) -> None:
        if not (self.tokens.shape == self.is_token.shape == self.is_second_text.shape):
            raise ValueError("the parts of a padded batch differ in shape")

    @property
    def num_responses(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> "PaddedBatch":
        if self.tokens.device == device:
            return self
        return PaddedBatch(self.tokens.to(device), self.is_token.to(device), self.is_second_text.to(device))
