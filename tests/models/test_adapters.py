"""An adapter on disk: read back it is the same adapter, with its head, and it names the base that it fits."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_models import random_groups, tiny_model, tiny_tokenizer

from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.adapters import base_fingerprint, fits, load_adapter, save_adapter
from prefloop.models.backbone import Backbone
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel

TOKENIZER = tiny_tokenizer()
BATCH = pack(random_groups(31, count=3))


def _with_adapter(architecture: str) -> Backbone:
    backbone = Backbone(tiny_model(architecture))
    targets = ["c_attn", "c_proj"] if architecture == "gpt2" else ["q_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=architecture == "gpt2")
    backbone.add_adapter("policy", config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.adapter_parameters("policy").values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return backbone


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_comes_back_under_another_name(architecture: str, tmp_path: Path) -> None:
    backbone = _with_adapter(architecture)
    scored = ScalarModel(backbone, TOKENIZER, adapter="policy")
    with torch.no_grad():
        scored.head.weight.fill_(0.3)
        logprobs = Policy(backbone, TOKENIZER, adapter="policy").logprobs(BATCH).logprobs
        scores = scored.at_ends(BATCH)
    save_adapter(backbone, "policy", tmp_path, head=scored.head, fingerprint=base_fingerprint(backbone))
    again = Backbone(tiny_model(architecture))
    head = load_adapter(again, "reward", tmp_path)
    assert head is not None
    with torch.no_grad():
        assert torch.equal(Policy(again, TOKENIZER, adapter="reward").logprobs(BATCH).logprobs, logprobs)
        assert torch.equal(ScalarModel(again, TOKENIZER, adapter="reward", head=head).at_ends(BATCH), scores)


def test_without_a_head_there_is_none(tmp_path: Path) -> None:
    backbone = _with_adapter("llama")
    save_adapter(backbone, "policy", tmp_path, fingerprint="a")
    assert load_adapter(Backbone(tiny_model("llama")), "policy", tmp_path) is None


def test_the_fingerprint_is_of_the_plain_weights_alone(tmp_path: Path) -> None:
    plain = Backbone(tiny_model("llama"))
    fingerprint = base_fingerprint(plain)
    assert base_fingerprint(_with_adapter("llama")) == fingerprint
    save_adapter(_with_adapter("llama"), "policy", tmp_path, fingerprint=fingerprint)
    assert fits(tmp_path, fingerprint)
    with torch.no_grad():
        next(plain.model.base_model.parameters())[5, 0] += 1e-3
    assert not fits(tmp_path, base_fingerprint(plain))
    assert not fits(tmp_path / "elsewhere", fingerprint)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not read the adapter in"):
        load_adapter(Backbone(tiny_model("llama")), "policy", tmp_path)
