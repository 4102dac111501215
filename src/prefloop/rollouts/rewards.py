"""Scores for completions: a reward model, or any rule or judge wrapped as one. All are `RewardSource`s.

A reward model takes the policy's own tokens when both speak the same tokens (same chat format, same vocabulary);
otherwise it takes the text and tokenises it itself, with the end of the response marked as in its training.
"""

import json
from collections.abc import Callable, Sequence

import torch

from prefloop.batches import TokenGroup
from prefloop.contracts import RewardSource
from prefloop.data.chat_format import ChatFormat
from prefloop.data.packing import micro_batches, pack
from prefloop.models.scalar_heads import ScalarModel
from prefloop.randomness import python_random
from prefloop.records import Completion, Prompt


class ModelReward:
    """A reward model's score at the last token of each response. `policy_format` is the one that made the token ids."""

    def __init__(
        self,
        model: ScalarModel,
        chat_format: ChatFormat,
        *,
        policy_format: ChatFormat | None = None,
        max_tokens_per_micro_batch: int = 16384,
    ) -> None:
        self.model = model
        self.chat_format = chat_format
        self.shares_tokens = policy_format is not None and policy_format.fingerprint() == chat_format.fingerprint()
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch

    def group(self, prompt: Prompt, completion: Completion) -> TokenGroup:
        """The prompt and the response in the reward model's own tokens."""
        if self.shares_tokens and completion.token_ids is not None:
            response = completion.token_ids
        else:
            response = self.chat_format.completion_ids(completion.text, ended=completion.ended)
        # An empty response that was cut has no token to read: its score is read at the end token all the same.
        return TokenGroup(self.chat_format.prompt_ids(prompt), (tuple(response) or (self.chat_format.eos_id,),))

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        groups = [self.group(*both) for both in zip(prompts, completions, strict=True)]
        order = sorted(range(len(groups)), key=lambda number: groups[number].num_tokens)
        scores = [0.0] * len(groups)
        for part in micro_batches([groups[n] for n in order], max_tokens=self.max_tokens_per_micro_batch):
            members = [order[number] for number in part]
            found = self.model.at_ends(pack([groups[number] for number in members]))
            for number, value in zip(members, found.tolist(), strict=True):
                scores[number] = value
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
