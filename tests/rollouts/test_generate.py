"""Decoding: the right distribution, the right log-probabilities, and rows that know nothing of one another."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prefloop.batches import TokenGroup
from prefloop.contracts import Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.from_scratch import train_tokenizer
from prefloop.models.policy import Policy
from prefloop.records import Completion
from prefloop.rollouts import generate
from prefloop.rollouts.generate import PolicyGenerator, draw, filtered_logits

TOKENIZER = train_tokenizer(["one two three"], vocabulary_size=270)
END = TOKENIZER.convert_tokens_to_ids("<|end|>")
ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt_neox")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16], [17, 18], [19, 20, 21, 22, 23], [5, 6, 7], [25, 26]]
"""Of mixed lengths; repeated, two of the same length stand in turn."""


def _model(architecture: str, *, end_bias: float = 0.0) -> PreTrainedModel:
    """A random model whose answers end after a few tokens when `end_bias` is large."""
    config: dict[str, Any] = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    if architecture in ("qwen3", "gemma", "gemma3_text"):
        config["head_dim"] = 8
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **config)).eval()
    if end_bias:
        head = model.get_output_embeddings()
        with torch.no_grad():
            bias = torch.zeros(len(TOKENIZER))
            bias[END] = end_bias
            head.bias = torch.nn.Parameter(bias)
    return model


def _generator(architecture: str = "llama", *, end_bias: float = 4.0, batch_size: int = 256) -> PolicyGenerator:
    policy = Policy(Backbone(_model(architecture, end_bias=end_bias)), TOKENIZER)
    return PolicyGenerator(policy, ChatFormat(TOKENIZER, prompt_format="raw"), batch_size=batch_size)


def _generate(
    generator: PolicyGenerator, prompts: Any = PROMPTS, *, seed: int = 0, **sampling: Any
) -> list[Completion]:
    settings = Sampling(**{"max_new_tokens": 12, **sampling})
    return generator.generate(prompts, sampling=settings, random=torch.Generator().manual_seed(seed))


def _tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids or () for completion in completions]


def _filtered_by_hand(logits: Tensor, sampling: Sampling) -> Tensor:
    """One row, token by token from the most likely down."""
    probabilities = torch.softmax(logits.double() / sampling.temperature, 0)
    order = probabilities.argsort(descending=True).tolist()
    if sampling.top_k:
        order = order[: sampling.top_k]
    allowed = torch.zeros_like(probabilities)
    allowed[order] = probabilities[order]
    allowed = allowed / allowed.sum()
    kept, reached = [], 0.0
    for token in order:
        kept.append(token)
        reached += float(allowed[token])
        if reached >= sampling.top_p:
            break
    result = torch.zeros_like(allowed)
    result[kept] = allowed[kept]
    return result / result.sum()


SAMPLINGS = [
    Sampling(1),
    Sampling(1, temperature=0.6),
    Sampling(1, temperature=1.7),
    Sampling(1, top_k=5),
    Sampling(1, top_p=0.7),
    Sampling(1, temperature=0.8, top_k=8, top_p=0.85),
    Sampling(1, top_k=1),
    Sampling(1, top_p=1e-6),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_hundred_thousand_draws_follow_the_filtered_softmax(sampling: Sampling) -> None:
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(4))
    expected = _filtered_by_hand(logits, sampling)
    count = 100_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(5))
    drawn = draw(logits.expand(count, -1), uniform, sampling)
    seen = torch.bincount(drawn.tokens, minlength=20).double()
    assert not bool(seen[expected == 0].any()), "what was filtered out is never drawn"
    likely = expected > 0
    statistic = float(((seen - count * expected).square()[likely] / (count * expected[likely])).sum())
    freedom = int(likely.sum()) - 1
    # Wilson and Hilferty's normal approximation of chi-square: beyond 3.9 deviations is less than one in 10,000.
    if freedom:
        z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
        assert z < 3.9
    assert torch.allclose(drawn.logprobs.double(), expected.log()[drawn.tokens], atol=1e-5)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_token_without_probability_is_never_drawn_not_even_at_the_ends(place: str) -> None:
    logits = torch.zeros(1, 5)
    dead = {"first": 0, "middle": 2, "last": 4}[place]
    logits[0, dead] = float("-inf")
    for uniform in (0.0, 0.25, 0.5, 0.75, 1 - 2**-24, 1.0):
        drawn = draw(logits, torch.tensor([uniform]), Sampling(1))
        assert int(drawn.tokens) != dead
        assert float(drawn.logprobs) == pytest.approx(math.log(0.25), abs=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.49, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        assert int(filtered_logits(logits, Sampling(1, top_p=top_p)).isfinite().sum()) == kept


def test_greedy_needs_no_filter_and_records_the_models_own_logprob() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    drawn = draw(logits, torch.tensor([0.99]), Sampling(1, temperature=0.0, top_k=1, top_p=0.1))
    assert int(drawn.tokens) == 1
    assert float(drawn.logprobs) == pytest.approx(float(torch.log_softmax(logits, -1)[0, 1]), abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("end_bias", [0.0, 4.0])
def test_greedy_is_what_transformers_generates(architecture: str, end_bias: float) -> None:
    generator = _generator(architecture, end_bias=end_bias)
    found = _generate(generator, temperature=0.0)
    stock = _model(architecture, end_bias=end_bias)
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=END)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        tokens = torch.tensor([prompt])
        expected = stock.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)  # type: ignore[operator]
        assert (completion.token_ids or ()) == tuple(expected[0, len(prompt) :].tolist())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_are_those_of_packed_scoring(architecture: str, temperature: float) -> None:
    """Absolute and rotary positions, left padding, a cache and compaction on one side; a packed row on the other."""
    generator = _generator(architecture)
    completions = _generate(generator, PROMPTS * 4, temperature=temperature)
    groups = [
        TokenGroup(tuple(prompt), (completion.token_ids or (),))
        for prompt, completion in zip(PROMPTS * 4, completions, strict=True)
    ]
    with torch.no_grad():
        scored = generator.policy.logprobs(pack(groups), temperature=temperature).logprobs
    recorded = torch.tensor([logprob for completion in completions for logprob in completion.logprobs or ()])
    assert len({len(group.responses[0]) for group in groups}) > 3, "rows end at different places"
    assert float((scored - recorded).abs().max()) <= 1e-4


@pytest.mark.parametrize("share", [0.01, 0.25, 2.0])
def test_compaction_changes_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = _generator()
    usual = _tokens(_generate(generator, PROMPTS * 4))
    monkeypatch.setattr(generate, "COMPACT_SHARE", share)
    assert _tokens(_generate(generator, PROMPTS * 4)) == usual


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    assert _tokens(_generate(_generator(batch_size=batch_size))) == _tokens(_generate(_generator()))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """The first row's random numbers are its own, whatever prompts come after it."""
    generator = _generator(end_bias=1.0)
    alone = _tokens(_generate(generator, PROMPTS[:1]))[0]
    for neighbours in (PROMPTS[1:], [[30, 31]] * 9, [PROMPTS[0]] * 3):
        assert _tokens(_generate(generator, [PROMPTS[0], *neighbours]))[0] == alone


def test_samples_of_one_prompt_differ_and_the_seed_decides() -> None:
    generator = _generator(end_bias=0.0)
    many = _tokens(_generate(generator, [PROMPTS[0]] * 6))
    assert len(set(many)) == 6
    assert _tokens(_generate(generator, [PROMPTS[0]] * 6)) == many
    assert _tokens(_generate(generator, [PROMPTS[0]] * 6, seed=1)) != many


def test_an_ended_completion_holds_its_end_token_last_and_counts_it() -> None:
    completions = _generate(_generator(), PROMPTS * 8)
    assert {completion.ended for completion in completions} == {True, False}
    for completion in completions:
        assert completion.token_ids is not None
        assert completion.logprobs is not None
        assert len(completion.token_ids) == len(completion.logprobs) <= 12
        assert (completion.token_ids[-1] == END) == completion.ended
        assert END not in completion.token_ids[:-1]
        assert completion.ended or len(completion.token_ids) == 12
        assert "<|" not in completion.text
        assert completion.text == TOKENIZER.decode(list(completion.token_ids), skip_special_tokens=True)


@pytest.mark.parametrize(("room", "fits"), [(20, True), (19, False)])
def test_too_long_for_the_context_is_an_error(room: int, fits: bool) -> None:
    """The longest prompt has 8 tokens, and 12 are asked for."""
    generator = _generator()
    generator.policy.backbone.model.config.max_position_embeddings = room
    if fits:
        assert len(_generate(generator)) == len(PROMPTS)
        return
    with pytest.raises(ModelError, match="make 20 tokens, but the model has room for 19"):
        _generate(generator)
    with pytest.raises(ModelError, match="make 20 tokens"):
        next(generator.stream(PROMPTS[2], sampling=Sampling(12), random=torch.Generator()))


def test_streaming_gives_the_tokens_of_generating() -> None:
    generator = _generator()
    for seed, prompt in enumerate(PROMPTS):
        whole = _tokens(_generate(generator, [prompt], seed=seed))[0]
        random = torch.Generator().manual_seed(seed)
        assert tuple(generator.stream(prompt, sampling=Sampling(12), random=random)) == whole


def test_between_streamed_tokens_the_callers_gradients_are_on() -> None:
    """A generator that pauses inside a context manager would leave it switched on for whoever waits."""
    stream = _generator(end_bias=0.0).stream(PROMPTS[0], sampling=Sampling(4), random=torch.Generator())
    for _ in stream:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_generating_leaves_no_gradient_and_the_weights_trainable() -> None:
    generator = _generator()
    _generate(generator)
    logprobs = generator.policy.logprobs(pack([TokenGroup((5, 6), ((7, 8),))])).logprobs
    logprobs.sum().backward()
    assert all(value.grad is not None for name, value in generator.policy.parameters().items() if "bias" not in name)


def test_no_prompts_give_no_completions() -> None:
    assert _generate(_generator(), []) == []
