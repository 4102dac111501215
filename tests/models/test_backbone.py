"""Adapters on one backbone: off means the base to the last bit, and no role's gradient reaches another's weights."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_models import logprobs_alone, random_groups, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.backbone import (
    Backbone,
    load_causal_model,
    load_reward_model,
    load_tokenizer,
    switch_off_dropout,
)
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel

TOKENIZER = tiny_tokenizer()
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value"]}
GROUPS = random_groups(11, count=3)


def _lora(architecture: str) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[architecture], fan_in_fan_out=architecture == "gpt2")


def _stir(backbone: Backbone, adapter: str, seed: int = 0) -> None:
    """Moves an adapter away from zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.adapter_parameters(adapter).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def _logprobs(backbone: Backbone, adapter: str | None) -> torch.Tensor:
    with torch.no_grad():
        return Policy(backbone, TOKENIZER, adapter=adapter).logprobs(pack(GROUPS)).logprobs


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_adapters_off_or_fresh_are_the_base(architecture: str) -> None:
    backbone = Backbone(tiny_model(architecture))
    base = _logprobs(backbone, None)
    backbone.add_adapter("policy", _lora(architecture))
    assert torch.equal(_logprobs(backbone, None), base)
    assert torch.equal(_logprobs(backbone, "policy"), base), "a fresh adapter adds zero"
    _stir(backbone, "policy")
    assert torch.equal(_logprobs(backbone, None), base)
    assert float((_logprobs(backbone, "policy") - base).abs().max()) > 1e-2


def test_the_reference_of_an_adapter_is_the_base() -> None:
    backbone = Backbone(tiny_model("llama"))
    base = _logprobs(backbone, None)
    backbone.add_adapter("policy", _lora("llama"))
    _stir(backbone, "policy")
    with torch.no_grad():
        reference = Policy(backbone, TOKENIZER, adapter="policy").reference()
        assert torch.equal(reference.logprobs(pack(GROUPS)).logprobs, base)


def test_a_role_trains_its_own_adapter_only() -> None:
    backbone = Backbone(tiny_model("llama"))
    for seed, name in enumerate(("policy", "critic")):
        backbone.add_adapter(name, _lora("llama"))
        _stir(backbone, name, seed)
    policy = Policy(backbone, TOKENIZER, adapter="policy")
    critic = ScalarModel(backbone, TOKENIZER, adapter="critic")
    with torch.no_grad():
        critic.head.weight.fill_(0.1)
    batch = pack(GROUPS)
    for role, other, loss in (
        (policy, critic, lambda: policy.logprobs(batch).logprobs.sum()),
        (critic, policy, lambda: critic.at_ends(batch).square().sum()),
    ):
        backbone.model.zero_grad(set_to_none=True)
        critic.head.weight.grad = None
        loss().backward()
        assert all(float(p.grad.norm()) > 0 for p in role.parameters().values() if p.grad is not None)
        assert all(p.grad is not None for p in role.parameters().values())
        assert all(p.grad is None for p in other.parameters().values())
        assert all(p.grad is None for name, p in backbone.model.named_parameters() if "lora_" not in name)


def test_the_parameters_of_roles_do_not_overlap_and_leave_the_base_out() -> None:
    backbone = Backbone(tiny_model("llama"))
    for name in ("policy", "policy_two"):
        backbone.add_adapter(name, _lora("llama"))
    one, two = (backbone.parameters(name) for name in ("policy", "policy_two"))
    assert len(one) == len(two) == 2 * 2 * 3, "two matrices for three places in two layers"
    assert not {id(p) for p in one.values()} & {id(p) for p in two.values()}
    assert all("lora_" in name for name in one)


def test_copying_an_adapter_starts_from_its_weights_and_goes_its_own_way() -> None:
    backbone = Backbone(tiny_model("llama"))
    backbone.add_adapter("reward", _lora("llama"))
    _stir(backbone, "reward")
    backbone.copy_adapter("reward", "critic", _lora("llama"))
    before = _logprobs(backbone, "reward")
    assert torch.equal(_logprobs(backbone, "critic"), before)
    _stir(backbone, "critic", seed=1)
    assert torch.equal(_logprobs(backbone, "reward"), before)
    assert float((_logprobs(backbone, "critic") - before).abs().max()) > 1e-2


def test_using_puts_back_what_was_on_even_after_an_error() -> None:
    backbone = Backbone(tiny_model("llama"))
    backbone.add_adapter("policy", _lora("llama"))
    backbone.add_adapter("critic", _lora("llama"))
    _stir(backbone, "policy")
    tokens = torch.tensor([[3, 4, 5]])

    def plain(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=False).logits

    with backbone.using("policy"):
        on = plain(backbone.model)
        with backbone.using(None):
            off = plain(backbone.model)
        with pytest.raises(KeyError), backbone.using(None):
            raise KeyError
        assert torch.equal(plain(backbone.model), on)
    assert not torch.equal(on, off)
    assert torch.equal(plain(backbone.model), off), "the critic's adapter is fresh, so it equals the base"


def test_an_unknown_adapter_is_named() -> None:
    with pytest.raises(ModelError, match="no adapter called policy"), Backbone(tiny_model("llama")).using("policy"):
        pass


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_a_saved_adapter_is_merged_into_plain_weights(architecture: str, tmp_path: Path) -> None:
    backbone = Backbone(tiny_model(architecture))
    for seed, name in enumerate(("policy", "reward")):
        backbone.add_adapter(name, _lora(architecture))
        _stir(backbone, name, seed)
    base, adapted = _logprobs(backbone, None), _logprobs(backbone, "policy")
    for adapter, expected in (("policy", adapted), (None, base)):
        Policy(backbone, TOKENIZER, adapter=adapter).save(tmp_path / str(adapter))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / str(adapter))
        with torch.no_grad():
            assert torch.allclose(logprobs_alone(merged, GROUPS), expected, atol=2e-5)
    assert torch.equal(_logprobs(backbone, "policy"), adapted), "saving leaves the model as it was"


def test_bfloat16_stays_near_float32_and_returns_float32() -> None:
    model = tiny_model("llama", initializer_range=0.05)
    exact = _logprobs(Backbone(model), None)
    rounded = _logprobs(Backbone(model, precision="bfloat16"), None)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().mean()) <= 0.02


def test_dropout_is_switched_off_in_modules_and_config() -> None:
    model = tiny_model("gpt2").train()
    batch = pack(GROUPS)
    with pytest.raises(ModelError, match="dropout"):
        Policy(Backbone(model), TOKENIZER).logprobs(batch)
    switch_off_dropout(model)
    one, other = (_logprobs(Backbone(model), None) for _ in range(2))
    assert torch.equal(one, other)
    assert model.config.resid_pdrop == model.config.attn_pdrop == model.config.embd_pdrop == 0.0


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    for load in (load_causal_model, load_tokenizer, load_reward_model):
        with pytest.raises(ModelError, match="could not load the"):
            load(str(tmp_path))


def test_a_reward_model_has_one_label(tmp_path: Path) -> None:
    model = ScalarModel(Backbone(tiny_model("llama", vocab_size=len(TOKENIZER))), TOKENIZER)
    model.save(tmp_path)
    assert load_reward_model(str(tmp_path)).config.num_labels == 1
    loaded = load_reward_model(str(tmp_path))
    loaded.config.num_labels = 2
    loaded.score = torch.nn.Linear(32, 2, bias=False)
    loaded.save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match="has 2 labels"):
        load_reward_model(str(tmp_path / "two"))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_attention_that_was_replaced_behind_its_back_is_noticed() -> None:
    model = tiny_model("llama")
    backbone = Backbone(model)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="attention of LlamaForCausalLM was replaced"):
        backbone.hidden(pack(GROUPS))


def test_a_fresh_adapter_is_drawn_from_seed_and_name() -> None:
    drawn = []
    for name, seed, noise in (("policy", 1, 5), ("policy", 1, 6), ("policy", 2, 5), ("critic", 1, 5)):
        torch.manual_seed(noise)
        backbone = Backbone(tiny_model("llama"))
        state = torch.get_rng_state()
        backbone.add_adapter(name, _lora("llama"), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([value.detach().flatten() for value in backbone.adapter_parameters(name).values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
