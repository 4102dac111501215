"""Scoring in chunks, saving and reading back, and the probe that refuses a model the packed path cannot run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    FAMILIES,
    gradients,
    logprobs_alone,
    random_groups,
    relative_error,
    restore_registration,
    tiny_model,
    tiny_tokenizer,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models import packed_attention
from prefloop.models import policy as policy_module
from prefloop.models.backbone import Backbone, head_of
from prefloop.models.policy import Policy, probe

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_chunked_head_equals_the_whole_head(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack(random_groups(6, count=3))
    found = []
    for logits_per_chunk in (1 << 24, 61 * 7):
        monkeypatch.setattr(policy_module, "LOGITS_PER_CHUNK", logits_per_chunk)
        model = tiny_model(architecture)
        scored = Policy(Backbone(model), TOKENIZER).logprobs(batch, temperature=0.8)
        (scored.logprobs * torch.linspace(-1, 2, batch.num_targets)).sum().backward()
        found.append((scored.logprobs.detach(), scored.entropy, gradients(model)))
    whole, chunked = found
    assert batch.num_targets % 7, "the last chunk is a short one"
    for one, other in zip(whole, chunked, strict=True):
        assert relative_error(one, other) <= 1e-5


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_policy_gives_the_same_logprobs(architecture: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied, vocab_size=len(TOKENIZER))
    groups = random_groups(7, count=3)
    policy = Policy(Backbone(model), TOKENIZER)
    policy.save(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(logprobs_alone(reloaded, groups), policy.logprobs(pack(groups)).logprobs, atol=1e-5)
    assert (head_of(reloaded).weight is reloaded.get_input_embeddings().weight) == tied
    assert reloaded.generation_config.eos_token_id == TOKENIZER.eos_token_id
    assert reloaded.generation_config.pad_token_id == TOKENIZER.pad_token_id
    assert AutoTokenizer.from_pretrained(tmp_path)("one two").input_ids == TOKENIZER("one two").input_ids
    assert "prefloop" not in (tmp_path / "config.json").read_text()


def test_without_a_padding_token_the_end_token_pads(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    Policy(Backbone(tiny_model("gpt2")), tokenizer).save(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["pad_token_id"] == saved["eos_token_id"] == tokenizer.eos_token_id


def test_the_weights_of_another_shape_of_model_are_not_saved(tmp_path: Path) -> None:
    """A body with a part that the plain architecture lacks would lose it without a sound."""
    model = tiny_model("llama")
    model.base_model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"extra\.weight.* do not fit LlamaForCausalLM"):
        Policy(Backbone(model), TOKENIZER).save(tmp_path)


def test_a_frozen_reference_does_not_follow_the_policy() -> None:
    model = tiny_model("llama")
    policy = Policy(Backbone(model), TOKENIZER)
    reference = policy.reference()
    batch = pack(random_groups(8, count=2))
    with torch.no_grad():
        before = policy.logprobs(batch).logprobs
        for parameter in policy.parameters().values():
            parameter.mul_(1.1)
        assert torch.equal(reference.logprobs(batch).logprobs, before)
        assert not torch.allclose(policy.logprobs(batch).logprobs, before, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in reference.parameters().values())


@pytest.fixture
def _registration() -> Iterator[None]:
    yield
    restore_registration()


@pytest.mark.parametrize("architecture", [*FAMILIES, "mistral", "phi3", "opt"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_probe_accepts_what_runs(architecture: str, precision: Any) -> None:
    probe(Policy(Backbone(tiny_model(architecture), precision=precision), TOKENIZER))


@pytest.mark.usefixtures("_registration")
def test_the_probe_refuses_attention_that_ignores_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    real = packed_attention.packed_attention

    def deaf(*arguments: Any, packed: object = None, **keywords: Any) -> tuple[torch.Tensor, None]:
        return real(*arguments, **keywords)

    monkeypatch.setattr(packed_attention, "packed_attention", deaf)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM .* nats away"):
        probe(Policy(Backbone(tiny_model("llama")), TOKENIZER))


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("gemma2", {"head_dim": 8}, "Gemma2ForCausalLM cannot run .*softcap"),
        ("cohere", {}, "CohereForCausalLM .* nats away"),
        ("granite", {"logits_scaling": 2.0}, "GraniteForCausalLM .* nats away"),
    ],
)
def test_the_probe_refuses_what_the_packed_path_does_not_compute(
    architecture: str, changes: dict[str, object], reason: str
) -> None:
    """Soft-capped scores, and logits that change after the head."""
    with pytest.raises(ModelError, match=reason):
        probe(Policy(Backbone(tiny_model(architecture, **changes)), TOKENIZER))


def test_the_probe_refuses_a_model_without_a_language_model_head() -> None:
    with pytest.raises(ModelError, match="no language-model head"):
        probe(Policy(Backbone(tiny_model("llama").base_model), TOKENIZER))  # type: ignore[arg-type]
