"""Around a text environment: another reward, with its own kept in `info`, and a length limit that is a true end."""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from prefloop.contracts import RewardSource
from prefloop.environments.tasks import finite_scores


class RewardFromSource(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The source's score at the end of an answer, 0 before; the environment's own is `info["base_reward"]`."""

    def __init__(self, env: gymnasium.Env[Any, Any], source: RewardSource) -> None:
        super().__init__(env)
        self.source = source

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Raises DataError for a score that is not finite."""
        observation, base_reward, terminated, truncated, info = self.env.step(action)
        reward = 0.0
        if terminated or truncated:
            (reward,) = finite_scores(self.source, [info["prompt"]], [info["completion"]])
        return observation, reward, terminated, truncated, info | {"base_reward": float(base_reward)}


class VectorRewardFromSource(VectorWrapper[Any, Any, Any, Any, Any]):
    """The same around many environments: all answers that end in a step are scored in one call.

    `infos["base_reward"]` holds the environments' own rewards, [environment].
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], source: RewardSource) -> None:
        super().__init__(env)
        self.source = source

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Raises DataError for a score that is not finite."""
        observations, base_rewards, terminations, truncations, infos = self.env.step(actions)
        over = np.logical_or(terminations, truncations)
        rewards = np.zeros(self.num_envs)
        if over.any():
            last = infos["final_info"]
            rewards[over] = finite_scores(self.source, list(last["prompt"][over]), list(last["completion"][over]))
        known = {"base_reward": base_rewards, "_base_reward": np.ones(self.num_envs, bool)}
        return observations, rewards, terminations, truncations, infos | known


class LimitTerminates(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An answer that is full counts as terminated, not as truncated.

    The score is paid at the limit, and nothing comes after it. A learner that adds the value of what might have come
    after a truncated episode (stable-baselines3 does) would count the answer twice, and learn never to end one.
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


class VectorLimitTerminates(VectorWrapper[Any, Any, Any, Any, Any]):
    """The same around many environments."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        return observations, rewards, terminations | truncations, np.zeros_like(truncations), infos
