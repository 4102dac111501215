"""A world so small that every answer can be written down, with the policy that theory says must be learned.

Eight tokens (one of them ends an answer), at most three tokens an answer, one prompt token: 400 answers, those that
ended and those that were cut. For a reward r, a reference and beta > 0 the maximiser of E[r] - beta KL(policy ||
reference) is known: reference(y) exp(r(y) / beta) / Z, with value beta log Z (Ziegler et al. 2019, arXiv:1909.08593;
Rafailov et al. 2023, arXiv:2305.18290, equation 4). The policies are transformers of this package, trained through its
one loop. The prompt is the end token, which no answer holds but at its end: rotary positions are relative, so a prompt
that an answer could repeat would make two states look alike to one layer.
"""

import io
import itertools
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefloop.batches import TokenGroup
from prefloop.data.chat_format import ChatFormat
from prefloop.data.packing import pack
from prefloop.formulas.logprobs import sum_per_segment
from prefloop.models.backbone import Backbone
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Completion, Prompt
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import RuleReward
from prefloop.runs.drive import DriveSettings, drive
from prefloop.runs.folder import RunFolder
from prefloop.runs.progress import Progress

END = 7
HORIZON = 3
PROMPT = (END,)
BETA = 0.5


def _answers() -> list[tuple[int, ...]]:
    ended = [(*words, END) for length in range(HORIZON) for words in itertools.product(range(END), repeat=length)]
    return ended + list(itertools.product(range(END), repeat=HORIZON))


ANSWERS = _answers()
EVERYTHING = pack([TokenGroup(PROMPT, tuple(ANSWERS))])


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the last word ends an answer."""
    words = [*"abcdefg", "<end>"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="a", pad_token="<end>")


TOKENIZER = tokenizer()
CHAT_FORMAT = ChatFormat(TOKENIZER, prompt_format="raw")


def network(seed: int, *, spread: float = 0.15, num_layers: int = 1) -> LlamaForCausalLM:
    """A random transformer over the eight tokens."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def new_policy(seed: int = 0) -> Policy:
    return Policy(Backbone(network(seed)), TOKENIZER)


def new_critic(seed: int = 1) -> ScalarModel:
    return ScalarModel(Backbone(network(seed)), TOKENIZER)


@torch.no_grad()
def distribution(policy: Policy) -> Tensor:
    """The probability of each of the 400 answers, in float64; they sum to 1."""
    logprobs = policy.logprobs(EVERYTHING).logprobs.double()
    probabilities = sum_per_segment(logprobs, EVERYTHING.segment, num_segments=len(ANSWERS)).exp()
    assert abs(float(probabilities.sum()) - 1.0) < 1e-4
    return probabilities


def rewards(seed: int = 0) -> Tensor:
    """A reward for every answer: worths of words at their places and of pairs of neighbours, and one of ending."""
    random = torch.Generator().manual_seed(seed)
    worth = 0.3 * torch.randn(HORIZON, 8, generator=random, dtype=torch.float64)
    neighbours = 0.2 * torch.randn(8, 8, generator=random, dtype=torch.float64)
    return torch.stack(
        [
            sum((worth[place, word] for place, word in enumerate(answer)), torch.tensor(0.0))
            + sum((neighbours[pair] for pair in itertools.pairwise(answer)), torch.tensor(0.0))
            + (1.2 if answer[-1] == END else 0.0)
            for answer in ANSWERS
        ]
    )


def optimum(reference: Tensor, reward: Tensor, beta: float = BETA) -> Tensor:
    """The policy that theory names, answer by answer."""
    tilted = reference * (reward / beta).exp()
    return tilted / tilted.sum()


def optimal_value(reference: Tensor, reward: Tensor, beta: float = BETA) -> float:
    """beta log Z: the most that reward minus beta times KL can be."""
    return beta * float((reference * (reward / beta).exp()).sum().log())


def total_variation(one: Tensor, other: Tensor) -> float:
    return 0.5 * float((one - other).abs().sum())


def reward_source(reward: Tensor) -> RuleReward:
    place = {answer: number for number, answer in enumerate(ANSWERS)}

    def rule(_prompt: Prompt, completion: Completion) -> float:
        assert completion.token_ids is not None
        return float(reward[place[completion.token_ids]])

    return RuleReward(rule)


def generator(policy: Policy) -> PolicyGenerator:
    return PolicyGenerator(policy, CHAT_FORMAT, batch_size=1024)


def train(algorithm: Any, folder: Path, **settings: Any) -> RunFolder:
    """Drives the algorithm to its end in a new run folder."""
    run = RunFolder.create(folder, name="oracle", algorithm=algorithm.name, seed=0)
    go_on(algorithm, run, **settings)
    return run


def go_on(algorithm: Any, run: RunFolder, *, resume: bool = False, **settings: Any) -> None:
    drive(
        algorithm,
        run,
        settings=DriveSettings(**{"save_models": False, **settings}),
        progress=Progress(quiet=True, console=Console(file=io.StringIO())),
        resume_command="",
        resume=resume,
    )


def pairs(
    reward: Tensor, source: Tensor, *, count: int, seed: int, certain: bool = False
) -> tuple[list[TokenGroup], list[float]]:
    """Pairs of answers drawn from `source`, the better one first, with the share of annotators who prefer it.

    The share is exactly sigmoid(reward difference), or with `certain` one annotator's draw from it.
    """
    random = torch.Generator().manual_seed(seed)
    left, right = torch.multinomial(source, 2 * count, replacement=True, generator=random).view(2, -1)
    share = torch.sigmoid(reward[left] - reward[right])
    if certain:
        share = (torch.rand(count, generator=random, dtype=torch.float64) < share).double()
    swap = share < 0.5
    chosen, rejected = torch.where(swap, right, left), torch.where(swap, left, right)
    groups = [
        TokenGroup(PROMPT, (ANSWERS[one], ANSWERS[other]))
        for one, other in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]
    return groups, torch.where(swap, 1 - share, share).tolist()


def everywhere(reference: Tensor) -> Tensor:
    """Where pairs come from: mostly the reference, but no answer is left out."""
    return 0.8 * reference + 0.2 / len(reference)


def without_end(group: TokenGroup) -> TokenGroup:
    """The group with its end tokens not counted."""
    masks = tuple(tuple(token != END for token in response) for response in group.responses)
    return TokenGroup(group.prompt, group.responses, masks)
