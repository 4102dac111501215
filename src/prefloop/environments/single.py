"""One answer at a time: `gymnasium.Env`."""

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium

from prefloop.contracts import RewardSource
from prefloop.data.chat_format import ChatFormat
from prefloop.environments.tasks import Episode, Observation, OneStepTask, TextTask, TokenLevelTask
from prefloop.records import Prompt, prompt_text


class TextEnvironment(gymnasium.Env[Observation, Any]):
    """A text task as an environment. What raises is said at `TextTask`.

    `reset(seed=...)` fixes the prompts that come from then on; `reset(options={"prompt_id": 3})` takes that prompt. The
    reward is 0 on the way and the reward source's score at the end, where `info` holds `text` and `completion`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 1}  # type: ignore[misc]
    task_class: ClassVar[type[TextTask]]

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        chat_format: ChatFormat,
        vocabulary_size: int,
        max_new_tokens: int,
        reward_source: RewardSource | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = self.task_class(
            prompts,
            chat_format=chat_format,
            vocabulary_size=vocabulary_size,
            max_new_tokens=max_new_tokens,
            reward_source=reward_source,
        )
        self.action_space = self.task.action_space
        self.observation_space = self.task.observation_space
        self.render_mode = render_mode
        self.episode = Episode(len(self.task.prompts))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        (prompt_id,) = self.task.chosen_prompt(options)
        self.episode.begin(self.np_random, prompt_id=prompt_id, seeded=seed is not None)
        return self.task.observe(self.episode), self.task.info_at_start(self.episode)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.task.check(self.episode, action)
        self.task.write(self.episode, action)
        (reward,) = self.task.rewards([self.episode])
        return (
            self.task.observe(self.episode),
            reward,
            self.episode.terminated,
            self.episode.truncated,
            self.task.info(self.episode),
        )

    def render(self) -> str | None:
        """The prompt, and below it the answer as far as it is written."""
        return rendered(self.task, self.episode) if self.render_mode == "ansi" else None


def rendered(task: TextTask, episode: Episode) -> str:
    """An episode as text."""
    assert episode.prompt_id is not None
    return f"{prompt_text(task.prompts[episode.prompt_id])}\n{task.completion(episode).text}"


class TokenLevelEnvironment(TextEnvironment):
    """`prefloop/TokenLevel-v0`: see `TokenLevelTask`."""

    task_class = TokenLevelTask


class OneStepEnvironment(TextEnvironment):
    """`prefloop/OneStep-v0`: see `OneStepTask`."""

    task_class = OneStepTask
