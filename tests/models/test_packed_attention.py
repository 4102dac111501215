"""The packed row gives what each sequence alone gives through the stock model, numbers and gradients."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    VOCABULARY,
    gradients,
    logprobs_alone,
    random_groups,
    relative_error,
    stock_twin,
    tiny_model,
    tiny_tokenizer,
)

from prefloop.batches import PackedBatch, TokenGroup
from prefloop.data.packing import micro_batches, pack
from prefloop.errors import ModelError
from prefloop.models import packed_attention
from prefloop.models.backbone import Backbone
from prefloop.models.policy import Policy

TOKENIZER = tiny_tokenizer()


@pytest.fixture(params=["explicit", "sdpa"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "sdpa":
        monkeypatch.setattr(packed_attention, "EXPLICIT_LENGTH", 0)


def _weights(count: int) -> torch.Tensor:
    """Uneven weights, so that no two tokens can change places unseen."""
    return torch.randn(count, generator=torch.Generator().manual_seed(3))


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_equals_each_sequence_alone(architecture: str) -> None:
    model = tiny_model(architecture)
    stock = stock_twin(model)
    groups = random_groups(1)
    packed = Policy(Backbone(model), TOKENIZER).logprobs(pack(groups)).logprobs
    alone = logprobs_alone(stock, groups)
    assert float((packed - alone).detach().abs().max()) <= 1e-5
    weights = _weights(len(alone))
    (packed * weights).sum().backward()
    (alone * weights).sum().backward()
    assert relative_error(gradients(model), gradients(stock)) <= 1e-5


def test_a_row_longer_than_the_explicit_path_takes_agrees_too() -> None:
    """The real boundary, not a patched one: 513 tokens go through SDPA and 512 do not."""
    for length in (512, 513):
        group = TokenGroup(tuple(2 + n % 50 for n in range(500)), (tuple(3 + n % 40 for n in range(length - 500)),))
        model = tiny_model("llama", max_position_embeddings=600)
        stock = stock_twin(model)
        with torch.no_grad():
            packed = Policy(Backbone(model), TOKENIZER).logprobs(pack([group])).logprobs
            assert float((packed - logprobs_alone(stock, [group])).abs().max()) <= 1e-5


def test_temperature_divides_the_logits() -> None:
    model = tiny_model("llama")
    groups = random_groups(2)
    with torch.no_grad():
        alone = logprobs_alone(stock_twin(model), groups, temperature=0.7)
        packed = Policy(Backbone(model), TOKENIZER).logprobs(pack(groups), temperature=0.7).logprobs
    assert float((packed - alone).abs().max()) <= 1e-5


def test_the_entropy_is_that_of_the_next_token_distribution() -> None:
    model = tiny_model("gpt2")
    group = TokenGroup((3, 4, 5), ((6, 7),))
    with torch.no_grad():
        logits = stock_twin(model)(input_ids=torch.tensor([[3, 4, 5, 6, 7]])).logits[0, 2:4]
        expected = torch.distributions.Categorical(logits=logits).entropy()
        found = Policy(Backbone(model), TOKENIZER).logprobs(pack([group])).entropy
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.usefixtures("_path")
def test_siblings_do_not_see_one_another() -> None:
    policy = Policy(Backbone(tiny_model("llama")), TOKENIZER)
    prompt, first = (3, 4, 5, 6), (7, 8, 9)
    with torch.no_grad():
        one, other = (
            policy.logprobs(pack([TokenGroup(prompt, (first, sibling))])).logprobs[:3]
            for sibling in ((10, 11, 12), (50, 51, 52))
        )
    assert torch.equal(one, other)


@pytest.mark.usefixtures("_path")
def test_a_neighbouring_group_changes_nothing() -> None:
    policy = Policy(Backbone(tiny_model("gpt2")), TOKENIZER)
    group = TokenGroup((3, 4, 5, 6), ((7, 8, 9), (10, 11, 12, 13)))
    one, other = (TokenGroup((first, 20, 21), ((22, 23, first),)) for first in (30, 31))
    with torch.no_grad():
        found = [policy.logprobs(pack([group, neighbour])).logprobs[:7] for neighbour in (one, other)]
    assert torch.equal(*found)


def _with_poisoned_tail(batch: PackedBatch, token: int) -> PackedBatch:
    tokens = batch.tokens.clone()
    tokens[batch.num_tokens :] = token
    return PackedBatch(**{**batch.__dict__, "tokens": tokens})


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("poison", [1e9, float("nan"), float("inf")])
def test_what_nobody_reads_changes_no_bit(poison: float) -> None:
    """The tail of the row is filled with a token whose embedding is poison; no sequence holds that token."""
    model = tiny_model("llama", tie_word_embeddings=False)
    policy = Policy(Backbone(model), TOKENIZER)
    unread = VOCABULARY - 1
    groups = [TokenGroup((3, 4, 5), ((6, 7, 8, 9), (10, 11))), TokenGroup((12, 13), ((14, 15, 16),))]
    batch = pack(groups)
    assert batch.num_tokens < len(batch.tokens)
    with torch.no_grad():
        clean = policy.logprobs(batch).logprobs
        next(model.get_input_embeddings().parameters())[unread] = poison
        poisoned = policy.logprobs(_with_poisoned_tail(batch, unread)).logprobs
    assert torch.equal(clean, poisoned)


@pytest.mark.usefixtures("_path")
def test_the_tail_carries_no_gradient() -> None:
    found = []
    for token in (0, VOCABULARY - 1):
        model = tiny_model("gpt2")
        batch = _with_poisoned_tail(pack(random_groups(4, count=2)), token)
        Policy(Backbone(model), TOKENIZER).logprobs(batch).logprobs.sum().backward()
        found.append(gradients(model))
    assert torch.equal(*found)


def test_eight_micro_batches_equal_one() -> None:
    groups = random_groups(5, count=8)
    found = []
    for max_tokens in (1, 10**6):
        model = tiny_model("qwen2")
        policy = Policy(Backbone(model), TOKENIZER)
        parts = list(micro_batches(groups, max_tokens=max_tokens))
        assert len(parts) == (8 if max_tokens == 1 else 1)
        at, weights = 0, _weights(sum(group.num_targets for group in groups))
        for part in parts:
            logprobs = policy.logprobs(pack([groups[number] for number in part])).logprobs
            (logprobs * weights[at : at + len(logprobs)]).sum().backward()
            at += len(logprobs)
        found.append(gradients(model))
    assert relative_error(*found) <= 1e-5


def _llama_group() -> TokenGroup:
    return TokenGroup(tuple(range(2, 12)), ((12, 13, 14), (15, 16, 17)))


@pytest.mark.parametrize("window", [12, 13])
def test_a_sliding_window_is_refused_when_a_sequence_outgrows_it(window: int) -> None:
    model = tiny_model("mistral", sliding_window=window)
    policy = Policy(Backbone(model), TOKENIZER)
    if window == 12:
        with pytest.raises(ModelError, match="13 tokens is longer than the model's sliding window of 12"):
            policy.logprobs(pack([_llama_group()]))
        return
    with torch.no_grad():
        packed = policy.logprobs(pack([_llama_group()])).logprobs
        assert float((packed - logprobs_alone(stock_twin(model), [_llama_group()])).abs().max()) <= 1e-5


def test_attention_dropout_is_refused() -> None:
    model = tiny_model("llama", attention_dropout=0.1).train()
    with pytest.raises(ModelError, match="attention dropout"):
        Policy(Backbone(model), TOKENIZER).logprobs(pack([_llama_group()]))


def test_soft_capped_scores_are_refused() -> None:
    model = tiny_model("gemma2", head_dim=8)
    with pytest.raises(ModelError, match="softcap"):
        Policy(Backbone(model), TOKENIZER).logprobs(pack([_llama_group()]))


def test_a_sequence_beyond_the_positions_is_refused() -> None:
    backbone = Backbone(tiny_model("llama", max_position_embeddings=12))
    with pytest.raises(ModelError, match="13 tokens is longer than the 12 positions"):
        backbone.hidden(pack([_llama_group()]))


@pytest.mark.parametrize("mask", ["none", "padding"])
def test_without_a_layout_the_function_is_plain_attention(mask: str) -> None:
    """Generation, and scoring a padded batch, go through the same model; a mask that was lost would show here."""
    model = tiny_model("llama")
    stock = stock_twin(model)
    Backbone(model)
    tokens = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    keywords = {"attention_mask": (tokens != 0).long()} if mask == "padding" else {}
    with torch.no_grad():
        found, expected = (one(input_ids=tokens, use_cache=False, **keywords).logits for one in (model, stock))
    real = tokens != 0 if mask == "padding" else torch.ones_like(tokens, dtype=torch.bool)
    assert float((found - expected)[real].abs().max()) <= 1e-5


def test_the_explicit_backward_passes_a_finite_difference_check() -> None:
    """In float64 against numerical differentiation, with grouped query heads and a shared prompt."""
    batch = pack([TokenGroup((1, 2), ((3, 4, 5), (6, 7)))], row_multiple=1)
    generator = torch.Generator().manual_seed(0)
    shapes = ((len(batch.tokens), 4, 2), (len(batch.tokens), 2, 2), (len(batch.tokens), 2, 2))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    apply: Callable[..., torch.Tensor] = packed_attention._ExplicitRows.apply
    assert torch.autograd.gradcheck(lambda q, k, v: apply(q, k, v, batch.layout, 0.5), inputs)
