"""An encoder's score depends on its text alone, trains as the stock model does, and survives plain transformers."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from prefloop.batches import TokenGroup
from prefloop.data.encoder_format import EncoderFormat
from prefloop.data.padding import pad
from prefloop.errors import ModelError
from prefloop.models.backbone import load_causal_model, load_reward_model
from prefloop.models.encoder_rewards import (
    EncoderRewardModel,
    is_encoder,
    load_encoder,
    load_encoder_tokenizer,
    output_layer,
)
from prefloop.records import PreferencePair
from tiny_encoders import FAMILIES, POSITIONS, encoder_tokenizer, save_encoder, tiny_encoder

ALL = pytest.mark.parametrize("family", FAMILIES)
PAIRS = [
    PreferencePair("good film ?", "a good film", "bad"),
    PreferencePair("", "alone", "a longer text alone !"),
    PreferencePair("b", "cut off", "and this one ended", chosen_ended=False),
    PreferencePair("a much longer prompt a b c d", "x", "a good film a bad"),
]


def _model(family: str, **settings: Any) -> EncoderRewardModel:
    return EncoderRewardModel(tiny_encoder(family), encoder_tokenizer(family), **settings)


def _groups(family: str) -> list[TokenGroup]:
    return [EncoderFormat(encoder_tokenizer(family)).pair_group(pair) for pair in PAIRS]


def _alone(family: str, model: Any, group: TokenGroup) -> torch.Tensor:
    """The stock model on each of a group's texts by itself, without padding."""
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters and family == "bert"
    scores = []
    for response in group.responses:
        inputs = {"input_ids": torch.tensor([group.prompt + response])}
        if takes_types:
            second = len(response) if len(group.prompt) > 1 else 0
            types = [0] * (len(group.prompt) + len(response) - second) + [1] * second
            inputs["token_type_ids"] = torch.tensor([types])
        scores.append(model(**inputs).logits[0, 0])
    return torch.stack(scores)


@ALL
def test_scores_are_those_of_each_text_alone_whatever_stands_beside_it(family: str) -> None:
    model, groups = _model(family), _groups(family)
    alone = [_alone(family, model.model, group) for group in groups]
    with torch.no_grad():
        together = model.at_ends(pad(groups))
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)
        assert torch.allclose(model.at_ends(pad(groups[::-1])), torch.cat(alone[::-1]), atol=1e-5)
        assert together.std() > 0.05
        long = TokenGroup((*groups[0].prompt,), ((9,) * (POSITIONS - len(groups[0].prompt)),))
        beside = model.at_ends(pad([groups[0], long]))[:2]
    assert torch.allclose(beside, alone[0], atol=1e-5)


@ALL
def test_padding_reaches_no_score_and_no_gradient(family: str) -> None:
    """What stands in a padded place is replaced by the padding token and masked, token by token."""
    model = _model(family)
    batch = pad(_groups(family))
    poisoned = type(batch)(torch.where(batch.is_token, batch.tokens, 11), batch.is_token, batch.is_second_text)
    assert not torch.equal(batch.tokens, poisoned.tokens)
    with torch.no_grad():
        assert torch.equal(model.at_ends(batch), model.at_ends(poisoned))


@ALL
def test_gradients_are_those_of_each_text_alone(family: str) -> None:
    groups = _groups(family)
    batched, stock = _model(family), tiny_encoder(family)
    weights = torch.randn(8, generator=torch.Generator().manual_seed(0))
    (batched.at_ends(pad(groups)) * weights).sum().backward()
    (torch.cat([_alone(family, stock, group) for group in groups]) * weights).sum().backward()
    named = dict(stock.named_parameters())
    for name, parameter in batched.parameters().items():
        expected = named[name].grad
        if expected is None:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected, atol=1e-4 * (1 + float(expected.abs().max()))), name


@ALL
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_head_runs_in_float32_and_hidden_spares_the_pass(family: str, precision: Any) -> None:
    model, batch = _model(family, precision=precision), pad(_groups(family))
    with torch.no_grad():
        scores = model.at_ends(batch)
        assert scores.dtype == torch.float32
        assert torch.equal(model.at_ends(batch, hidden=model.hidden(batch)), scores)
        exact = _model(family).at_ends(batch)
    assert torch.allclose(scores, exact, atol=0.2 if precision == "bfloat16" else 1e-6)
    assert model.hidden(batch).shape == (8, model.width)


def test_head_dropout_is_drawn_from_the_global_state() -> None:
    model = _model("distilbert")
    batch = pad([_groups("distilbert")[0]] * 200)
    with torch.no_grad():
        plain = model.at_ends(batch)
        torch.manual_seed(0)
        one = model.at_ends(batch, head_dropout=0.5)
        torch.manual_seed(0)
        assert torch.equal(model.at_ends(batch, head_dropout=0.5), one)
        assert torch.equal(model.at_ends(batch), plain), "and none without being asked for"
    assert float(one.std()) > 0
    assert abs(float(one.mean() - plain.mean())) < 5 * float(one.std()) / 20, "what is left is scaled up"


def test_no_dropout_in_training_whatever_the_config_says() -> None:
    model = EncoderRewardModel(
        tiny_encoder("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train(),
        encoder_tokenizer("bert"),
    )
    batch = pad(_groups("bert"))
    assert torch.equal(model.at_ends(batch), model.at_ends(batch))
    assert model.model.config.hidden_dropout_prob == 0.5, "the config stays what it was"


@ALL
def test_a_saved_reward_model_gives_the_same_scores_in_plain_transformers(family: str, tmp_path: Path) -> None:
    """For answers that ended; `tokenizer(prompt, answer)` always closes the pair."""
    trained, text_format = _model(family), EncoderFormat(encoder_tokenizer(family))
    trained.save(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (model.config.num_labels, model.config.architectures) == (1, [type(trained.model).__name__])
    ended = [pair for pair in PAIRS if pair.prompt and pair.chosen_ended]
    with torch.no_grad():
        expected = trained.at_ends(pad([text_format.pair_group(pair) for pair in ended]))
        prompts = [pair.prompt for pair in ended for _ in range(2)]
        answers = [answer for pair in ended for answer in (pair.chosen, pair.rejected)]
        inputs = tokenizer(prompts, answers, padding=True, return_tensors="pt")
        assert torch.allclose(model(**inputs).logits[:, 0], expected, atol=1e-5)
        inputs = tokenizer([PAIRS[1].chosen, PAIRS[1].rejected], padding=True, return_tensors="pt")
        expected = trained.at_ends(pad([text_format.pair_group(PAIRS[1])]))
        assert torch.allclose(model(**inputs).logits[:, 0], expected, atol=1e-5)
        again = EncoderRewardModel(load_reward_model(str(tmp_path)), load_encoder_tokenizer(str(tmp_path)))
        batch = pad(_groups(family))
        assert torch.equal(again.at_ends(batch), trained.at_ends(batch))


@ALL
def test_an_encoder_from_a_checkpoint_scores_zero_and_has_its_body(family: str, tmp_path: Path) -> None:
    folder = str(save_encoder(tmp_path, family))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, same, other = (load_encoder(folder, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    for (name, weight), again in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(weight, again), name
    between = [name for name in one.state_dict() if not torch.equal(one.state_dict()[name], other.state_dict()[name])]
    prefix = f"{one.base_model_prefix}."
    assert all("pooler" in name or not name.startswith(prefix) for name in between), "the body is the checkpoint's"
    masked = tiny_encoder(family, masked=True)
    body = {name: value for name, value in masked.base_model.state_dict().items() if "pooler" not in name}
    for name, value in body.items():
        assert torch.equal(one.base_model.state_dict()[name], value), name
    model = EncoderRewardModel(one, encoder_tokenizer(family))
    scores = model.at_ends(pad(_groups(family)))
    assert torch.equal(scores, torch.zeros(8))
    scores.sum().backward()
    gradient = output_layer(one).weight.grad
    assert gradient is not None
    assert float(gradient.norm()) > 0


def test_a_classifier_of_other_labels_gives_its_body(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "bert", masked=False, num_labels=3)
    model = load_encoder(str(folder), seed=0)
    assert model.config.num_labels == 1
    assert torch.equal(output_layer(model).weight, torch.zeros(1, 32))
    stored = tiny_encoder("bert", num_labels=3).state_dict()
    for name, value in model.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(value, stored[name]), name


@ALL
def test_positions_are_known_and_a_longer_text_is_an_error(family: str) -> None:
    """RoBERTa's config names two more than it can use."""
    model = _model(family)
    assert model.max_length == POSITIONS
    with torch.no_grad():
        model.at_ends(pad([TokenGroup((5, 6), ((7,) * (POSITIONS - 2),))]))
        with pytest.raises(ModelError, match=f"{POSITIONS + 1} tokens is longer than the {POSITIONS} positions"):
            model.at_ends(pad([TokenGroup((5, 6), ((7,) * (POSITIONS - 1),))]))


def test_the_tokenizers_own_limit_counts_too() -> None:
    tokenizer = copy.deepcopy(encoder_tokenizer("distilbert"))
    tokenizer.model_max_length = 20
    assert EncoderRewardModel(tiny_encoder("distilbert"), tokenizer).max_length == 20


def test_freezing_stops_every_gradient() -> None:
    model = _model("roberta")
    model.freeze()
    assert not model.at_ends(pad(_groups("roberta"))).requires_grad


def test_a_tokenizer_hands_out_what_its_model_takes(tmp_path: Path) -> None:
    """DistilBERT knows no token types; with a tokenizer that names them no plain call would work."""
    typed = encoder_tokenizer("bert")
    model = EncoderRewardModel(tiny_encoder("distilbert"), typed)
    assert not model.uses_token_types
    assert "token_type_ids" in typed.model_input_names, "the caller's stays as it is"
    model.save(tmp_path)
    plain, tokenizer = (one.from_pretrained(tmp_path) for one in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        logits = plain(**tokenizer("good", "bad", return_tensors="pt")).logits[0]
        pair = EncoderFormat(typed).pair_group(PreferencePair("good", "bad", "bad"))
        assert torch.allclose(logits, model.at_ends(pad([pair]))[:1], atol=1e-5)


def test_token_types_reach_a_model_that_knows_them() -> None:
    model, batch = _model("bert"), pad(_groups("bert")[:1])
    assert model.uses_token_types
    flat = type(batch)(batch.tokens, batch.is_token, torch.zeros_like(batch.is_second_text))
    with torch.no_grad():
        assert not torch.allclose(model.at_ends(batch), model.at_ends(flat), atol=1e-3)


def test_what_is_an_encoder(tmp_path: Path) -> None:
    for family in FAMILIES:
        assert is_encoder(str(save_encoder(tmp_path / family, family)))
    for architecture in ("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt_neox"):
        tiny_model(architecture).config.save_pretrained(tmp_path / architecture)
        assert not is_encoder(str(tmp_path / architecture))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"could not load the model in .*empty"):
        is_encoder(str(tmp_path / "empty"))


def test_what_cannot_be_a_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has 0 output layers for one label"):
        output_layer(tiny_model("llama"))
    with pytest.raises(ModelError, match="BertForSequenceClassification has 0 output layers"):
        output_layer(tiny_encoder("bert", num_labels=2))
    other: PreTrainedTokenizerFast = encoder_tokenizer("modernbert")
    with pytest.raises(ModelError, match=r"pads with token 0 and its tokenizer with \d+: set both to one"):
        EncoderRewardModel(tiny_encoder("bert"), other)
    with pytest.raises(ModelError, match="could not load the model in"):
        load_causal_model(str(save_encoder(tmp_path, "distilbert")))
