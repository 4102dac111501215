"""Another reward around an environment, and the old one kept; a limit that is a true end."""

import gymnasium
import numpy as np
import pytest
from toy_tasks import END, CountedScores, settings

from prefloop.environments import (
    LimitTerminates,
    RewardFromSource,
    TokenLevelEnvironment,
    TokenLevelVectorEnvironment,
    VectorLimitTerminates,
    VectorRewardFromSource,
)
from prefloop.errors import DataError
from prefloop.records import prompt_text
from prefloop.rollouts.rewards import RuleReward

LENGTHS = RuleReward(lambda prompt, completion: 100.0 * len(prompt_text(prompt)) + len(completion.text))


def test_the_new_reward_comes_at_the_end_and_the_old_one_is_kept() -> None:
    env = RewardFromSource(TokenLevelEnvironment(**settings()), LENGTHS)
    env.reset(options={"prompt_id": 1})
    _, reward, *_, info = env.step(2)
    assert (reward, info) == (0.0, {"base_reward": 0.0})
    _, reward, terminated, _, info = env.step(END)
    assert (reward, info["base_reward"], terminated) == (301.0, 21.0, True)
    env.reset(options={"prompt_id": 0})
    for _ in range(3):
        env.step(2)
    _, reward, terminated, truncated, info = env.step(2)
    assert (reward, info["base_reward"], terminated, truncated) == (107.0, 40.0, False, True)


def test_it_wraps_what_make_makes() -> None:
    env = RewardFromSource(gymnasium.make("prefloop/OneStep-v0", **settings()), LENGTHS)
    env.reset(options={"prompt_id": 0})
    assert env.step(np.array([3, END, 2, 2]))[1] == 101.0


def test_many_at_once_are_scored_in_one_call() -> None:
    source, base = CountedScores(), RuleReward(lambda *_: -1.0)
    env = VectorRewardFromSource(TokenLevelVectorEnvironment(3, **settings(reward_source=base)), source)
    env.reset(seed=0)
    _, rewards, *_, infos = env.step(np.array([END, 2, END]))
    assert rewards.tolist() == [11.0, 0.0, 11.0]
    assert infos["base_reward"].tolist() == [-1.0, 0.0, -1.0]
    assert infos["_base_reward"].all()
    _, rewards, *_, infos = env.step(np.array([2, 2, 2]))
    assert (rewards.tolist(), infos["base_reward"].tolist()) == ([0.0] * 3, [0.0] * 3)
    assert source.calls == [2]


def test_a_score_that_is_not_finite_is_an_error() -> None:
    env = RewardFromSource(TokenLevelEnvironment(**settings()), RuleReward(lambda *_: float("inf")))
    env.reset()
    with pytest.raises(DataError, match="with inf"):
        env.step(END)


def test_a_full_answer_is_terminated_and_still_one_that_was_cut() -> None:
    env = LimitTerminates(TokenLevelEnvironment(**settings()))
    env.reset(seed=0)
    for _ in range(3):
        assert env.step(2)[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(2)
    assert (reward, terminated, truncated) == (40.0, True, False)
    assert not info["completion"].ended
    several = VectorLimitTerminates(TokenLevelVectorEnvironment(2, **settings(max_new_tokens=2)))
    several.reset(seed=0)
    several.step(np.array([2, END]))
    _, rewards, terminations, truncations, _ = several.step(np.array([2, 3]))
    assert (rewards.tolist(), terminations.tolist(), truncations.tolist()) == ([20.0, 0.0], [True, False], [False] * 2)
