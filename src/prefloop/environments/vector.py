"""Many answers at once: `gymnasium.vector.VectorEnv`. What has ended in a step is scored in one call."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prefloop.contracts import RewardSource
from prefloop.data.chat_format import ChatFormat
from prefloop.environments.single import rendered
from prefloop.environments.tasks import Episode, Observation, OneStepTask, TextTask, TokenLevelTask
from prefloop.errors import SettingsError
from prefloop.records import Prompt

Booleans = NDArray[np.bool_]


class TextVectorEnvironment(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """A text task for `num_envs` answers side by side; each has its own order of prompts.

    The step in which an answer ends shows the next prompt already (SAME_STEP): the last observation and `info` of the
    answer that ended are in `infos["final_obs"]` and `infos["final_info"]`. Seed s gives environment i the seed s + i,
    as Gymnasium's own vector environments do. `options={"prompt_id": ...}` names one prompt for all, or one for each.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    task_class: ClassVar[type[TextTask]]

    def __init__(
        self,
        num_envs: int,
        prompts: Sequence[Prompt],
        *,
        chat_format: ChatFormat,
        vocabulary_size: int,
        max_new_tokens: int,
        reward_source: RewardSource | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise SettingsError(f"num_envs is {num_envs}; at least 1 is needed.")
        self.task = self.task_class(
            prompts,
            chat_format=chat_format,
            vocabulary_size=vocabulary_size,
            max_new_tokens=max_new_tokens,
            reward_source=reward_source,
        )
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_action_space = self.task.action_space
        self.single_observation_space = self.task.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.episodes = [Episode(len(self.task.prompts)) for _ in range(num_envs)]
        self.generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        seeds = list(seed) if isinstance(seed, Sequence) else self._seeds(seed)
        if len(seeds) != self.num_envs:
            raise SettingsError(f"{len(seeds)} seeds were given for {self.num_envs} environments.")
        prompt_ids = self.task.chosen_prompt(options, num_episodes=self.num_envs)
        infos: dict[str, Any] = {}
        for number, (one_seed, prompt_id) in enumerate(zip(seeds, prompt_ids, strict=True)):
            if one_seed is not None:
                self.generators[number] = seeding.np_random(one_seed)[0]
            infos = self._begin(number, infos, prompt_id=prompt_id, seeded=one_seed is not None)
        return self._observe(), infos

    def _seeds(self, seed: int | None) -> list[int | None]:
        return [None if seed is None else seed + number for number in range(self.num_envs)]

    def _begin(
        self, number: int, infos: dict[str, Any], *, prompt_id: int | None = None, seeded: bool = False
    ) -> dict[str, Any]:
        episode = self.episodes[number]
        episode.begin(self.generators[number], prompt_id=prompt_id, seeded=seeded)
        return self._add_info(infos, self.task.info_at_start(episode), number)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[np.float64], Booleans, Booleans, dict[str, Any]]:
        for episode, action in zip(self.episodes, actions, strict=True):
            self.task.check(episode, action)
        for episode, action in zip(self.episodes, actions, strict=True):
            self.task.write(episode, action)
        rewards = np.array(self.task.rewards(self.episodes))
        terminations = np.array([episode.terminated for episode in self.episodes])
        truncations = np.array([episode.truncated for episode in self.episodes])
        infos: dict[str, Any] = {}
        for number, episode in enumerate(self.episodes):
            if episode.is_over:
                last = {"final_obs": self.task.observe(episode), "final_info": self.task.info(episode)}
                infos = self._begin(number, self._add_info(infos, last, number))
        return self._observe(), rewards, terminations, truncations, infos

    def _observe(self) -> Observation:
        seen = [self.task.observe(episode) for episode in self.episodes]
        return {name: np.stack([one[name] for one in seen]) for name in seen[0]}

    def render(self) -> tuple[str, ...] | None:
        """Every prompt with its answer as far as it is written."""
        return tuple(rendered(self.task, one) for one in self.episodes) if self.render_mode == "ansi" else None


class TokenLevelVectorEnvironment(TextVectorEnvironment):
    """`prefloop/TokenLevel-v0`, many at once: see `TokenLevelTask`."""

    task_class = TokenLevelTask


class OneStepVectorEnvironment(TextVectorEnvironment):
    """`prefloop/OneStep-v0`, many at once: see `OneStepTask`."""

    task_class = OneStepTask
