"""Encoders learn what a bag of words cannot know: which answer fits the prompt. At chance until the two are related."""

import math
import random
from typing import Any, get_args

import pytest
import torch

from prefloop.algorithms.reward_modelling import Config, RewardModelling
from prefloop.batches import TokenGroup
from prefloop.data.encoder_format import EncoderFormat
from prefloop.errors import SettingsError
from prefloop.models.encoder_rewards import EncoderRewardModel
from prefloop.models.from_scratch import EncoderArchitecture, new_encoder, train_encoder_tokenizer
from prefloop.records import LabelledText, PreferencePair

WORDS = ["river", "stone", "cloud", "maple", "ember", "window", "candle", "harbor", "meadow", "falcon"]
FITS = {"loud": "drum", "soft": "harp"}
CONFIG = Config(batch_size=16, learning_rate=3e-3, warmup_steps=10, num_epochs=6.0)


def _pairs(seed: int, count: int) -> list[PreferencePair]:
    """The drum is preferred where the prompt asks for something loud, the harp where it asks for something soft."""
    rng = random.Random(seed)

    def text(word: str, length: int) -> str:
        words = rng.choices(WORDS, k=length)
        words[rng.randrange(length)] = word
        return " ".join(words)

    pairs = []
    for _ in range(count):
        asked, other = rng.sample(sorted(FITS), 2)
        chosen, rejected = (text(FITS[mood], rng.randint(3, 6)) for mood in (asked, other))
        pairs.append(PreferencePair(text(asked, 3), chosen, rejected))
    return pairs


TRAIN, HELD_OUT = _pairs(1, 400), _pairs(2, 200)
TEXTS = [text for pair in TRAIN for text in (pair.prompt, pair.chosen, pair.rejected) if isinstance(text, str)]


def _encoder(architecture: EncoderArchitecture) -> tuple[EncoderRewardModel, EncoderFormat]:
    tokenizer = train_encoder_tokenizer(TEXTS, architecture, vocabulary_size=320, max_length=64)
    model = new_encoder(architecture, tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_length=64, seed=1)
    return EncoderRewardModel(model, tokenizer), EncoderFormat(tokenizer)


def _algorithm(architecture: EncoderArchitecture = "distilbert", **changes: Any) -> RewardModelling[EncoderRewardModel]:
    model, text_format = _encoder(architecture)
    train, held_out = ([text_format.pair_group(pair) for pair in pairs] for pairs in (TRAIN, HELD_OUT))
    return RewardModelling(
        model, train, [1.0] * 400, config=CONFIG.model_copy(update=changes), seed=1,
        evaluation_groups=held_out, evaluation_targets=[1.0] * 200,
    )  # fmt: skip


def _train(algorithm: RewardModelling[EncoderRewardModel]) -> None:
    for step in range(algorithm.num_steps):
        algorithm.step(algorithm.batch(step))


@pytest.mark.parametrize("architecture", get_args(EncoderArchitecture))
def test_an_encoder_from_scratch_learns_a_planted_preference(architecture: EncoderArchitecture) -> None:
    algorithm = _algorithm(architecture)
    assert algorithm.evaluate()[0]["accuracy"].mean == 0.5
    _train(algorithm)
    assert algorithm.evaluate()[0]["accuracy"].mean > 0.9


def test_chosen_and_rejected_swapped_is_learned_upside_down() -> None:
    algorithm = _algorithm()
    algorithm.groups = [TokenGroup(group.prompt, group.responses[::-1]) for group in algorithm.groups]
    _train(algorithm)
    assert algorithm.evaluate()[0]["accuracy"].mean < 0.1


def test_single_labelled_texts_are_learned_by_cross_entropy() -> None:
    """One text labelled good in three of four rows: its score ends at ln 3."""
    model, text_format = _encoder("bert")
    group = text_format.labelled_group(LabelledText("river stone", 1))
    config = CONFIG.model_copy(update={"score_penalty": 0.0, "num_epochs": 200.0, "batch_size": 4})
    algorithm = RewardModelling(model, [group] * 4, [1.0, 1.0, 1.0, 0.0], config=config, seed=1)
    first = algorithm.step(algorithm.batch(0)).measures
    assert first["loss"].mean == pytest.approx(math.log(2), abs=1e-6)
    _train(algorithm)
    reader = RewardModelling(
        model, [group], [1.0], config=config, seed=1, evaluation_groups=[group], evaluation_targets=[1.0]
    )
    assert reader.evaluate()[0]["score"].mean == pytest.approx(math.log(3), abs=2e-2)


def test_how_a_step_is_cut_into_batches_changes_nothing() -> None:
    norms, losses = [], []
    for max_tokens in (1, 100, 8192):
        algorithm = _algorithm(max_tokens_per_micro_batch=max_tokens, score_penalty=0.3)
        with torch.no_grad():
            algorithm.model.output.weight.normal_(generator=torch.Generator().manual_seed(0))
        measures = algorithm.step(algorithm.batch(0)).measures
        norms.append(measures["gradient_norm"].mean)
        losses.append(measures["loss"].mean)
    assert losses[0] != pytest.approx(math.log(2), abs=1e-3)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_soft_targets_stay_with_their_pairs_when_lengths_are_sorted() -> None:
    """The part order of a step is by length; targets travel along. By hand from the scores of single pairs."""
    algorithm = _algorithm(score_penalty=0.0, batch_size=8)
    with torch.no_grad():
        algorithm.model.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    rows = [5, 3, 1, 0, 2, 7, 4, 6]
    algorithm.targets = [0.5 + number / 20 for number in range(8)]
    expected = 0.0
    for row in rows:
        alone = _algorithm(score_penalty=0.0, batch_size=1)
        alone.model.model.load_state_dict(algorithm.model.model.state_dict())
        alone.targets = algorithm.targets
        expected += alone.step((0, [row])).measures["loss"].mean / 8
    assert algorithm.step((0, rows)).measures["loss"].mean == pytest.approx(expected, rel=1e-5)


def test_an_encoder_predicts_no_tokens() -> None:
    with pytest.raises(SettingsError, match=r"language_weight is 0\.3: .* set it to 0 for an encoder"):
        _algorithm(language_weight=0.3)
