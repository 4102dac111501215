"""Scores for completions: a reward model, or any rule or judge wrapped as one. All are `RewardSource`s.

A reward model takes the policy's own tokens when both speak the same tokens (same chat format, same vocabulary);
otherwise, and always where it is an encoder, it takes the text and tokenises it itself, with the end of the response
marked as in its training.
"""

import json
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from prefloop.batches import TokenGroup
from prefloop.contracts import RewardModel, RewardSource
from prefloop.data.encoder_format import TextFormat
from prefloop.data.layouts import batches_of
from prefloop.randomness import python_random
from prefloop.records import Completion, Prompt

ModelType = TypeVar("ModelType", bound=RewardModel)


class ModelReward(Generic[ModelType]):
    """A reward model's score of each response. `policy_format` is the one that made the token ids.

    A prompt with a response that is longer than the model's positions is cut as in training: the beginning of the
    prompt first, then the end of the response. `num_scored` and `num_truncated` count, `truncation` says it in words.
    """

    def __init__(
        self,
        model: ModelType,
        text_format: TextFormat,
        *,
        policy_format: TextFormat | None = None,
        max_tokens_per_micro_batch: int = 16384,
    ) -> None:
        self.model = model
        self.text_format = text_format
        self.shares_tokens = policy_format is not None and policy_format.fingerprint() == text_format.fingerprint()
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.num_scored = 0
        self.num_truncated = 0

    def group(self, prompt: Prompt, completion: Completion) -> TokenGroup:
        """The prompt and the response in the reward model's own tokens."""
        if self.shares_tokens and completion.token_ids is not None:
            response = completion.token_ids
        else:
            response = self.text_format.completion_ids(completion.text, ended=completion.ended)
        # An empty response that was cut has no token to read: its score is read at the end token all the same.
        group = TokenGroup(self.text_format.prompt_ids(prompt), (tuple(response) or (self.text_format.eos_id,),))
        limit = self.model.max_length
        self.num_scored += 1
        if limit is None or group.longest_leaf <= limit:
            return group
        self.num_truncated += 1
        return self.text_format.truncated(group, limit)

    @property
    def truncation(self) -> str | None:
        """One sentence where texts had to be cut; None where all were read whole."""
        if not self.num_truncated:
            return None
        return (
            f"{self.num_truncated:,} of {self.num_scored:,} texts were longer than the reward model's "
            f"{self.model.max_length:,} positions and were cut: the beginning of the prompt first, "
            "then the end of the response"
        )

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        groups = [self.group(*both) for both in zip(prompts, completions, strict=True)]
        order = sorted(range(len(groups)), key=lambda number: groups[number].num_tokens)
        in_order = [groups[number] for number in order]
        scores = [0.0] * len(groups)
        for part, laid_out in batches_of(
            in_order, layout=self.model.layout, max_tokens=self.max_tokens_per_micro_batch
        ):
            for number, value in zip(part, self.model.at_ends(laid_out).tolist(), strict=True):
                scores[order[number]] = value
        return scores


class RuleReward:
    """A plain function of prompt and completion."""

    def __init__(self, rule: Callable[[Prompt, Completion], float]) -> None:
        self.rule = rule

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [self.rule(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


class ShuffledReward:
    """Another source's scores handed to the wrong completions: a control from which nothing can be learned.

    The order is drawn from the seed and from the completions themselves, so a resumed run shuffles as it would have.
    """

    def __init__(self, source: RewardSource, *, seed: int) -> None:
        self.source = source
        self.seed = seed

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        scores = self.source.score(prompts, completions)
        texts = json.dumps([completion.text for completion in completions])
        python_random(self.seed, f"shuffled reward/{texts}").shuffle(scores)
        return scores


class ConstantReward:
    """The same score for everything: the other control."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [0.0 for _ in zip(prompts, completions, strict=True)]
