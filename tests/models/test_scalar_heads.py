"""Scores and values: where they are read, and that a saved reward model gives them in plain transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    FAMILIES,
    leaves,
    random_groups,
    relative_error,
    stock_twin,
    tiny_model,
    tiny_tokenizer,
    tokenizer_without_padding,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from prefloop.batches import TokenGroup
from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone, load_reward_model
from prefloop.models.scalar_heads import ScalarModel

GROUPS = random_groups(21, count=4)


def _tokenizer(padding: str) -> PreTrainedTokenizerFast:
    if padding == "own":
        return tiny_tokenizer()
    tokenizer = tokenizer_without_padding()
    if padding == "end":
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _scored(architecture: str, tokenizer: PreTrainedTokenizerFast | None = None, **changes: object) -> ScalarModel:
    """A scalar model whose head is not zero."""
    tokenizer = tokenizer if tokenizer is not None else tiny_tokenizer()
    model = tiny_model(architecture, vocab_size=len(tokenizer), **changes)
    scored = ScalarModel(Backbone(model), tokenizer)
    with torch.no_grad():
        scored.head.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    return scored


def _stock_states(model: Any, tokens: tuple[int, ...]) -> torch.Tensor:
    return model.base_model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_scores_and_values_stand_where_they_should(architecture: str) -> None:
    """A score at the last response token; a value at the token before each response token."""
    scored = _scored(architecture)
    stock = stock_twin(scored.backbone.model)
    weight = scored.head.weight.detach()[0]
    with torch.no_grad():
        states = [(len(p), _stock_states(stock, p + r) @ weight) for p, r in leaves(GROUPS)]
        ends = torch.stack([values[-1] for _, values in states])
        before = torch.cat([values[prompt - 1 : -1] for prompt, values in states])
        batch = pack(GROUPS)
        assert torch.allclose(scored.at_ends(batch), ends, atol=1e-4)
        assert torch.allclose(scored.before_targets(batch), before, atol=1e-4)
        both = scored.before_targets_and_at_ends(batch)
        assert torch.allclose(both[0], before, atol=1e-4)
        assert torch.allclose(both[1], ends, atol=1e-4)


def test_gradients_equal_those_of_each_sequence_alone() -> None:
    scored = _scored("llama")
    stock = stock_twin(scored.backbone.model)
    weight = scored.head.weight.detach().clone()[0].requires_grad_()
    scored.at_ends(pack(GROUPS)).square().sum().backward()
    torch.stack([_stock_states(stock, p + r)[-1] @ weight for p, r in leaves(GROUPS)]).square().sum().backward()
    named = dict(stock.base_model.named_parameters())
    for name, parameter in scored.parameters().items():
        expected = weight.grad if name == "score.weight" else named[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert relative_error(parameter.grad.flatten(), expected.flatten()) <= 1e-4, name


def test_a_new_head_says_zero_and_learns() -> None:
    model = ScalarModel(Backbone(tiny_model("llama")), tiny_tokenizer())
    scores = model.at_ends(pack(GROUPS))
    assert torch.equal(scores, torch.zeros(len(leaves(GROUPS))))
    scores.sum().backward()
    assert model.head.weight.grad is not None
    assert float(model.head.weight.grad.norm()) > 0
    assert "score.weight" in model.parameters()


def test_head_dropout_drops_and_scales_and_is_drawn_from_the_global_state() -> None:
    scored, batch = _scored("llama"), pack([TokenGroup((2, 3), ((4, 5),))] * 400)
    with torch.no_grad():
        plain = scored.at_ends(batch)
        torch.manual_seed(0)
        one = scored.at_ends(batch, head_dropout=0.5)
        torch.manual_seed(0)
        assert torch.equal(scored.at_ends(batch, head_dropout=0.5), one)
    assert float(one.std()) > 0.1
    assert abs(float(one.mean() - plain.mean())) < 4 * float(one.std()) / 20, "what is left is scaled up"


@pytest.mark.parametrize("padding", ["own", "missing", "end"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_saved_reward_model_gives_the_same_scores(architecture: str, padding: str, tmp_path: Path) -> None:
    tokenizer = _tokenizer(padding)
    scored = _scored(architecture, tokenizer, tie_word_embeddings=padding == "own")
    end = int(tokenizer.convert_tokens_to_ids(str(tokenizer.eos_token)))  # type: ignore[arg-type]
    # As in training: every other response ends with the end token, which is where the score is read.
    groups = [
        TokenGroup(g.prompt, tuple(r + ((end,) if n % 2 else ()) for r in g.responses)) for n, g in enumerate(GROUPS)
    ]
    with torch.no_grad():
        expected = scored.at_ends(pack(groups))
        scored.save(tmp_path)
        assert torch.equal(scored.at_ends(pack(groups)), expected), "saving leaves the model as it was"
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        saved_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert reloaded.config.num_labels == 1
        assert saved_tokenizer.pad_token_id == reloaded.config.pad_token_id
        assert saved_tokenizer.pad_token_id not in (None, end)
        rows = [list(p + r) for p, r in leaves(groups)]
        alone = torch.stack([reloaded(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])
        batch = saved_tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        padded = reloaded(**batch).logits[:, 0]
    assert torch.allclose(alone, expected, atol=1e-4)
    assert torch.allclose(padded, expected, atol=1e-4)
    assert tokenizer.pad_token_id in ({"own": 0, "missing": None, "end": end}[padding],), "the policy's stays as it is"


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    scored = _scored("gpt2", _tokenizer("end"))
    for name in ("one", "two"):
        scored.save(tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_saved_reward_model_comes_back_as_backbone_and_head(tmp_path: Path) -> None:
    scored = _scored("llama")
    scored.save(tmp_path)
    again = ScalarModel.from_classifier(load_reward_model(str(tmp_path)), scored.tokenizer)
    with torch.no_grad():
        assert torch.allclose(again.at_ends(pack(GROUPS)), scored.at_ends(pack(GROUPS)), atol=1e-6)
        again.save(tmp_path / "again")
        once_more = ScalarModel.from_classifier(load_reward_model(str(tmp_path / "again")), scored.tokenizer)
        assert torch.equal(once_more.at_ends(pack(GROUPS)), again.at_ends(pack(GROUPS)))


def test_a_classifier_without_a_plain_score_layer_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="LlamaForCausalLM has no plain `score` layer"):
        ScalarModel.from_classifier(model, tiny_tokenizer())
