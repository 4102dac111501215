"""Imitation reaches the frequencies of what it is shown, and counts the tokens that it says it counts."""

from pathlib import Path

import oracle
import pytest
import torch

from prefloop.algorithms.sft import SFT, Config
from prefloop.batches import TokenGroup
from prefloop.data.packing import pack

CONFIG = Config(
    batch_size=128,
    num_epochs=200.0,
    learning_rate=1e-2,
    weight_decay=0.0,
    warmup_steps=0,
    final_learning_rate_share=0.0,
)
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 62)


def _shown() -> tuple[list[int], torch.Tensor]:
    """128 answers of twelve kinds, ended and cut, and the share of each."""
    kinds = torch.randperm(len(oracle.ANSWERS), generator=torch.Generator().manual_seed(5))[: len(COUNTS)].tolist()
    kinds[-2:] = [0, 20]
    shown = [kind for kind, count in zip(kinds, COUNTS, strict=True) for _ in range(count)]
    return shown, torch.bincount(torch.tensor(shown), minlength=len(oracle.ANSWERS)).double() / len(shown)


def _groups(shown: list[int]) -> list[TokenGroup]:
    return [TokenGroup(oracle.PROMPT, (oracle.ANSWERS[kind],)) for kind in shown]


def test_every_answer_ends_at_its_share(tmp_path: Path) -> None:
    shown, shares = _shown()
    algorithm = SFT(oracle.new_policy(1), _groups(shown), config=CONFIG, seed=1)
    oracle.train(algorithm, tmp_path / "run")
    learned = oracle.distribution(algorithm.policy)
    assert float((learned - shares).abs().max()) <= 2e-3
    assert oracle.total_variation(learned, shares) <= 0.01


def test_an_end_token_that_is_not_shown_is_not_learned(tmp_path: Path) -> None:
    shown, shares = _shown()
    groups = [oracle.without_end(group) for group in _groups(shown)]
    algorithm = SFT(oracle.new_policy(1), groups, config=CONFIG, seed=1)
    oracle.train(algorithm, tmp_path / "run")
    assert oracle.total_variation(oracle.distribution(algorithm.policy), shares) >= 0.2


def test_the_loss_is_the_mean_over_supervised_tokens() -> None:
    """Two answers of different length: one mean over all four tokens, not a mean of two means."""
    policy = oracle.new_policy(1)
    groups = [TokenGroup(oracle.PROMPT, (answer,)) for answer in ((oracle.END,), (1, 2, oracle.END))]
    with torch.no_grad():
        expected = -float(torch.cat([policy.logprobs(pack([group])).logprobs for group in groups]).sum() / 4)
    algorithm = SFT(policy, groups, config=CONFIG, seed=1, evaluation_groups=groups)
    evaluated = algorithm.evaluate()[0]["loss"]
    assert (evaluated.mean, evaluated.count) == (pytest.approx(expected, abs=1e-5), 4)
    report = algorithm.step(groups)
    assert report.measures["loss"].mean == pytest.approx(expected, abs=1e-5)
    assert report.num_tokens == 2 + 4


def test_micro_batches_change_nothing() -> None:
    norms = []
    for max_tokens in (1, 8192):
        config = CONFIG.model_copy(update={"max_tokens_per_micro_batch": max_tokens})
        algorithm = SFT(oracle.new_policy(1), _groups(_shown()[0]), config=config, seed=1)
        norms.append(algorithm.step(algorithm.batch(0)).measures["gradient_norm"].mean)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_every_row_is_seen_once_an_epoch_in_a_new_order() -> None:
    groups = _groups(list(range(40)))
    algorithm = SFT(oracle.new_policy(1), groups, config=CONFIG.model_copy(update={"batch_size": 10}), seed=1)
    epochs = [[group for step in range(4) for group in algorithm.batch(4 * epoch + step)] for epoch in range(2)]
    for epoch in epochs:
        assert {group.responses for group in epoch} == {group.responses for group in groups}
    assert epochs[0] != epochs[1]
    assert algorithm.num_steps == 200 * 4
