"""Tokenizers and models made here: any text survives, sentences become tokens, the same seed gives the same weights."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefloop.batches import TokenGroup
from prefloop.data.encoder_format import EncoderFormat
from prefloop.data.packing import pack
from prefloop.data.padding import pad
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.encoder_rewards import EncoderRewardModel
from prefloop.models.from_scratch import (
    END,
    OPENING,
    PAD,
    ROLES,
    SEPARATOR,
    EncoderArchitecture,
    new_encoder,
    new_model,
    train_encoder_tokenizer,
    train_tokenizer,
)
from prefloop.models.policy import Policy

TEXTS = ["Olé! Preheat the oven. Ça va? Then rest.\n1. Preheat the oven.\n2. Ünïcode naïve."] * 4
TOKENIZER = train_tokenizer(TEXTS, vocabulary_size=280, sentence_min_count=3)
SIZES: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "max_length": 64}


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from([*TEXTS[0].split(), TEXTS[0], "Olé!", "\n1."])).map(" ".join))
@example("Olé!")
@example("Olé!Olé! Preheat the oven.Ça va?")
@example("it 's n't , well . \t\n \x00 日本語 🎉 e\u0301")
def test_any_text_survives(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    special = (PAD, END, *ROLES)
    if not any(one in text for one in special):
        assert TOKENIZER.decode(ids) == text


def test_frequent_sentences_become_one_token_and_rare_ones_do_not() -> None:
    once = [*TEXTS, "Never twice."]
    with_sentences = train_tokenizer(once, vocabulary_size=280, sentence_min_count=3)
    without = train_tokenizer(once, vocabulary_size=280)
    for text in (" Preheat the oven.", "\n1.", " Then rest."):
        assert len(with_sentences(text, add_special_tokens=False).input_ids) == 1
        assert len(without(text, add_special_tokens=False).input_ids) > 1
    assert len(with_sentences("Never twice.", add_special_tokens=False).input_ids) > 1
    assert len(without) < len(with_sentences)


def test_special_tokens_have_their_places() -> None:
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token) == (PAD, END)
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert set(ROLES) <= set(TOKENIZER.all_special_tokens)


def test_the_chat_template_ends_an_answer_with_the_end_token() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert TOKENIZER.apply_chat_template(turns, tokenize=False) == "<|user|>Hi<|assistant|>Ho<|end|>"
    opened = TOKENIZER.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|user|>Hi<|assistant|>"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "qwen3", "gpt_neox"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(architecture: Any) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    one, same, other = (new_model(architecture, TOKENIZER, seed=seed, **SIZES) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    for (name, weight), again in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(weight, again), name
    weights = [model.state_dict()["lm_head.weight"] for model in (one, other)]
    assert not torch.equal(*weights)
    assert any(weight is one.lm_head.weight for weight in one.get_input_embeddings().parameters()), "tied"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "qwen3", "gpt_neox"])
def test_a_new_model_scores_without_noise_and_without_being_switched_to_eval(architecture: Any) -> None:
    policy = Policy(Backbone(new_model(architecture, TOKENIZER, seed=1, **SIZES)), TOKENIZER)
    batch = pack([TokenGroup((5, 6, 7), ((8, 9, 10),))])
    with torch.no_grad():
        assert torch.equal(policy.logprobs(batch).logprobs, policy.logprobs(batch).logprobs)


def test_the_config_knows_the_tokens_and_the_length() -> None:
    config = new_model("llama", TOKENIZER, seed=1, **SIZES).config
    assert (config.vocab_size, config.max_position_embeddings) == (len(TOKENIZER), 64)
    assert (config.eos_token_id, config.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ModelError, match="32 is not a multiple of num_heads 5"):
        new_model("llama", TOKENIZER, seed=1, **{**SIZES, "num_heads": 5})


ENCODERS = get_args(EncoderArchitecture)


def _encoder_tokenizer(architecture: EncoderArchitecture) -> Any:
    return train_encoder_tokenizer(TEXTS, architecture, vocabulary_size=280, max_length=64, sentence_min_count=3)


def test_an_encoders_tokenizer_frames_one_text_and_two() -> None:
    tokenizer = _encoder_tokenizer("bert")
    one, two = tokenizer("Preheat"), tokenizer("Preheat", "rest")
    first, second = (tokenizer(text, add_special_tokens=False).input_ids for text in ("Preheat", "rest"))
    opening, separator = tokenizer.convert_tokens_to_ids([OPENING, SEPARATOR])
    assert one.input_ids == [opening, *first, separator]
    assert two.input_ids == [opening, *first, separator, *second, separator]
    assert two.token_type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert tokenizer("rest").input_ids[1:-1] == tokenizer("then rest").input_ids[-len(second) - 1 : -1]
    assert len(tokenizer("Then rest.", add_special_tokens=False).input_ids) > 1
    assert tokenizer.unk_token is None, "bytes can write anything"
    assert tokenizer("日本語 🎉").input_ids


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_new_encoder_is_drawn_from_its_seed_and_scores_zero(architecture: EncoderArchitecture) -> None:
    tokenizer = _encoder_tokenizer(architecture)
    state = torch.get_rng_state()
    one, same, other = (new_encoder(architecture, tokenizer, seed=seed, **SIZES) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    for (name, weight), again in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(weight, again), name
    assert any(not torch.equal(*both) for both in zip(one.parameters(), other.parameters(), strict=True))
    model = EncoderRewardModel(one, tokenizer)
    assert (model.width, model.max_length) == (32, 64)
    assert one.config.intermediate_size == 128 if architecture != "distilbert" else one.config.hidden_dim == 128
    with torch.no_grad():
        assert torch.equal(model.at_ends(pad([TokenGroup((1,), ((7,) * 63,))])), torch.zeros(1)), "63 + 1 fit"


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_new_encoder_lives_on_in_plain_transformers(architecture: EncoderArchitecture, tmp_path: Path) -> None:
    tokenizer = _encoder_tokenizer(architecture)
    model = EncoderRewardModel(new_encoder(architecture, tokenizer, seed=1, **SIZES), tokenizer)
    with torch.no_grad():
        model.output.weight.normal_()
    model.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert ("token_type_ids" in saved.model_input_names) == (architecture == "bert")
    text_format = EncoderFormat(tokenizer)
    group = TokenGroup(text_format.prompt_ids("Preheat the oven?"), (text_format.completion_ids("Then rest."),))
    with torch.no_grad():
        score = model.at_ends(pad([group]))
        logits = plain(**saved("Preheat the oven?", "Then rest.", return_tensors="pt")).logits[0]
    assert torch.allclose(logits, score, atol=1e-5)


def test_heads_must_divide_an_encoders_width_too() -> None:
    with pytest.raises(ModelError, match="32 is not a multiple of num_heads 5"):
        new_encoder("bert", _encoder_tokenizer("bert"), seed=1, **{**SIZES, "num_heads": 5})
