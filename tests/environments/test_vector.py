"""Many answers at once are the same answers one by one, scored together."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_tasks import END, CountedScores, settings

from prefloop.environments import (
    OneStepEnvironment,
    OneStepVectorEnvironment,
    TokenLevelEnvironment,
    TokenLevelVectorEnvironment,
)
from prefloop.errors import SettingsError

KINDS = [(TokenLevelEnvironment, TokenLevelVectorEnvironment), (OneStepEnvironment, OneStepVectorEnvironment)]


def same(found: Any, expected: Any) -> bool:
    """Equal, however deep; objects of arrays one by one."""
    if isinstance(found, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in found)
    if isinstance(found, np.ndarray):
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return False
        if found.dtype == object:
            return all(same(one, other) for one, other in zip(found.tolist(), expected.tolist(), strict=True))
        return bool((found == expected).all())
    return found == expected


@pytest.mark.parametrize(("single", "several"), KINDS)
def test_the_vector_is_its_environments_one_by_one(single: Any, several: Any) -> None:
    together = several(5, **settings())
    one_by_one = SyncVectorEnv([lambda: single(**settings()) for _ in range(5)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert together.observation_space == one_by_one.observation_space
    assert together.action_space == one_by_one.action_space
    assert same(together.reset(seed=3), one_by_one.reset(seed=3))
    together.action_space.seed(0)
    ended = 0
    for _ in range(60):
        actions = together.action_space.sample()
        found, expected = together.step(actions), one_by_one.step(actions)
        assert all(same(*both) for both in zip(found, expected, strict=True))
        assert together.observation_space.contains(found[0])
        ended += int((found[2] | found[3]).sum())
    assert ended > 50
    assert same(together.reset(options={"prompt_id": 2}), one_by_one.reset(options={"prompt_id": 2}))
    together.close()
    one_by_one.close()


def test_what_ends_in_a_step_is_scored_in_one_call() -> None:
    source = CountedScores()
    env = TokenLevelVectorEnvironment(4, **settings(reward_source=source))
    env.reset(seed=0)
    _, rewards, terminations, *_ = env.step(np.array([2, END, 3, END]))
    assert rewards.tolist() == [0.0, 11.0, 0.0, 11.0]
    assert terminations.tolist() == [False, True, False, True]
    env.step(np.array([2, 2, 3, 3]))
    _, rewards, *_, infos = env.step(np.array([END] * 4))
    assert rewards.tolist() == [31.0, 21.0, 31.0, 21.0]
    assert source.calls == [2, 4]
    assert infos["final_info"]["text"].tolist() == ["a a", "a", "b b", "b"]


def test_the_next_prompt_is_there_in_the_same_step() -> None:
    env = TokenLevelVectorEnvironment(2, **settings())
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    env.reset(options={"prompt_id": [0, 2]})
    seen, _, _, _, infos = env.step(np.array([5, END]))
    assert seen["step"].tolist() == [1, 0]
    assert infos["final_obs"][0] is None
    assert infos["final_obs"][1]["step"] == 1
    assert infos["final_info"]["prompt_id"][1] == 2
    assert infos["_prompt_id"].tolist() == [False, True]
    assert seen["attention_mask"][1].sum() == len(env.task.prompt_ids[infos["prompt_id"][1]])


def test_make_vec_makes_it() -> None:
    for name, kind in (("TokenLevel", TokenLevelVectorEnvironment), ("OneStep", OneStepVectorEnvironment)):
        env = gymnasium.make_vec(f"prefloop/{name}-v0", num_envs=3, **settings())
        assert isinstance(env.unwrapped, kind)
        assert env.num_envs == 3
        env.reset(seed=1)
        env.step(env.action_space.sample())
        env.close()


def test_seeds_may_be_given_one_by_one() -> None:
    env = TokenLevelVectorEnvironment(3, **settings())
    _, first = env.reset(seed=[7, 8, 9])
    _, second = env.reset(seed=7)
    assert first["prompt_id"].tolist() == second["prompt_id"].tolist()
    with pytest.raises(SettingsError, match="2 seeds were given for 3 environments"):
        env.reset(seed=[1, 2])
    with pytest.raises(SettingsError, match="options names 2 prompts for 3"):
        env.reset(options={"prompt_id": [0, 1]})
    with pytest.raises(SettingsError, match="num_envs is 0"):
        TokenLevelVectorEnvironment(0, **settings())


def test_a_wrong_action_among_right_ones_changes_nothing() -> None:
    env = TokenLevelVectorEnvironment(2, **settings())
    env.reset()
    with pytest.raises(InvalidAction):
        env.step(np.array([2, 8]))
    assert env.step(np.array([2, 2]))[0]["step"].tolist() == [1, 1]


def test_rendering_is_every_prompt_and_answer() -> None:
    env = TokenLevelVectorEnvironment(2, **settings(render_mode="ansi"))
    env.reset(options={"prompt_id": [0, 1]})
    env.step(np.array([2, 3]))
    assert env.render() == ("a\na", "b c\nb")
    assert TokenLevelVectorEnvironment(2, **settings()).render() is None
