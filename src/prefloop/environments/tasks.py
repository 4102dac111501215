"""What is observed and done when a prompt is answered: token by token, or with one whole answer.

Observations have fixed shapes. `input_ids` hold the prompt and then the answer so far, from the left; the places behind
are filled with the end token, and `attention_mask` is 0 there. Text is in `info` alone: a Gymnasium text space takes no
free text.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from prefloop.contracts import RewardSource
from prefloop.data.chat_format import ChatFormat
from prefloop.errors import DataError, SettingsError
from prefloop.records import Completion, Prompt

Observation = dict[str, Any]


class PromptSampler:
    """Draws the numbers of prompts: each once, in a random order, before any comes again."""

    def __init__(self, num_prompts: int) -> None:
        self.num_prompts = num_prompts
        self._waiting: list[int] = []

    def draw(self, random: np.random.Generator) -> int:
        """The number of the next prompt, from 0."""
        if not self._waiting:
            self._waiting = random.permutation(self.num_prompts).tolist()
        return self._waiting.pop()

    def restart(self) -> None:
        """Forgets the order, so that what comes depends on the generator alone."""
        self._waiting = []


class Episode:
    """One answer being written."""

    def __init__(self, num_prompts: int) -> None:
        self.sampler = PromptSampler(num_prompts)
        self.prompt_id: int | None = None
        self.response: list[int] = []
        self.terminated = False
        self.truncated = False

    @property
    def is_over(self) -> bool:
        return self.terminated or self.truncated

    def begin(self, random: np.random.Generator, *, prompt_id: int | None, seeded: bool) -> None:
        """A new answer, to the prompt that is named or else drawn. A seed starts the order of prompts anew."""
        if seeded:
            self.sampler.restart()
        self.prompt_id = self.sampler.draw(random) if prompt_id is None else prompt_id
        self.response = []
        self.terminated = self.truncated = False


class TextTask(ABC):
    """Prompts to answer in at most `max_new_tokens` tokens of a vocabulary, and who scores the answers.

    `vocabulary_size` is the number of actions: the tokenizer's tokens, or the model's, which may be a few more. Without
    a `reward_source` every answer is worth 0. Raises SettingsError for no prompts, an end token outside the vocabulary,
    or fewer than one new token; DataError for a prompt that cannot be laid out or has tokens outside the vocabulary.
    """

    observes_answer: ClassVar[bool]

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        chat_format: ChatFormat,
        vocabulary_size: int,
        max_new_tokens: int,
        reward_source: RewardSource | None,
    ) -> None:
        if not prompts:
            raise SettingsError("prompts is empty; an environment needs at least one prompt to answer.")
        if max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens is {max_new_tokens}; an answer needs at least 1.")
        if chat_format.eos_id >= vocabulary_size:
            raise SettingsError(
                f"vocabulary_size is {vocabulary_size} and the end token is {chat_format.eos_id}: no answer could end."
            )
        self.prompts = list(prompts)
        self.chat_format = chat_format
        self.vocabulary_size = vocabulary_size
        self.max_new_tokens = max_new_tokens
        self.reward_source = reward_source
        self.prompt_ids = [chat_format.prompt_ids(prompt) for prompt in self.prompts]
        for number, ids in enumerate(self.prompt_ids):
            if max(ids) >= vocabulary_size:
                raise DataError(f"Prompt {number} has the token {max(ids)}; vocabulary_size is {vocabulary_size}.")
        self.num_places = max(map(len, self.prompt_ids)) + (max_new_tokens if self.observes_answer else 0)

        self.action_space = self._actions()
        self.observation_space = self._observations()

    @abstractmethod
    def _actions(self) -> spaces.Space[Any]:
        """What one action is."""

    @abstractmethod
    def write(self, episode: Episode, action: Any) -> None:
        """Takes an action that was checked."""

    def _observations(self) -> spaces.Dict:
        """Tokens and their mask, [place]; with the answer, the number of its tokens, too."""
        space: dict[str, spaces.Space[Any]] = {
            "input_ids": spaces.Box(0, self.vocabulary_size - 1, (self.num_places,), np.int64),
            "attention_mask": spaces.MultiBinary(self.num_places),
        }
        if self.observes_answer:
            space["step"] = spaces.Discrete(self.max_new_tokens + 1)
        return spaces.Dict(space)

    def observe(self, episode: Episode) -> Observation:
        """What can be seen of the episode; new arrays each time."""
        assert episode.prompt_id is not None
        answer = episode.response if self.observes_answer else []
        seen = [*self.prompt_ids[episode.prompt_id], *answer]
        ids = np.full(self.num_places, self.chat_format.eos_id, np.int64)
        ids[: len(seen)] = seen
        mask = np.zeros(self.num_places, np.int8)
        mask[: len(seen)] = 1
        observation: Observation = {"input_ids": ids, "attention_mask": mask}
        if self.observes_answer:
            observation["step"] = np.int64(len(answer))
        return observation

    def check(self, episode: Episode, action: Any) -> None:
        """Raises InvalidAction for an action that is none, and ResetNeeded after the end."""
        if episode.prompt_id is None or episode.is_over:
            raise ResetNeeded("The answer has ended, or not begun: call reset before the next step.")
        tokens = np.asarray(action)
        if tokens.dtype.kind not in "iu" or not self.action_space.contains(tokens if tokens.ndim else tokens[()]):
            raise InvalidAction(f"The action {action!r} is not in {self.action_space}.")

    def info_at_start(self, episode: Episode) -> dict[str, Any]:
        """`prompt_id`, its number, and `prompt`, a string or messages."""
        assert episode.prompt_id is not None
        return {"prompt_id": episode.prompt_id, "prompt": self.prompts[episode.prompt_id]}

    def info(self, episode: Episode) -> dict[str, Any]:
        """Nothing on the way; at the end what was known at the start, and the `completion` with its `text`."""
        if not episode.is_over:
            return {}
        completion = self.completion(episode)
        return {**self.info_at_start(episode), "text": completion.text, "completion": completion}

    def completion(self, episode: Episode) -> Completion:
        """The answer as rewards see it, as far as it is written."""
        return Completion(
            self.chat_format.decode(episode.response), ended=episode.terminated, token_ids=tuple(episode.response)
        )

    def rewards(self, episodes: Sequence[Episode]) -> list[float]:
        """One per episode: 0 on the way, the source's score at the end. All that have ended are scored in one call.

        Raises DataError for a score that is not finite.
        """
        over = [episode for episode in episodes if episode.is_over]
        rewards = [0.0] * len(episodes)
        if self.reward_source is None or not over:
            return rewards
        prompts = [self.prompts[episode.prompt_id] for episode in over if episode.prompt_id is not None]
        scores = iter(finite_scores(self.reward_source, prompts, [self.completion(episode) for episode in over]))
        return [next(scores) if episode.is_over else 0.0 for episode in episodes]

    def chosen_prompt(self, options: Mapping[str, Any] | None, *, num_episodes: int = 1) -> list[int | None]:
        """The prompt that `options` names for each episode; None where it is to be drawn.

        Raises SettingsError for other options, and for a number that no prompt has.
        """
        unknown = set(options or {}) - {"prompt_id"}
        if unknown:
            raise SettingsError(f"options has {', '.join(sorted(map(str, unknown)))}; prompt_id is the only one.")
        asked = (options or {}).get("prompt_id")
        several = list(asked) if isinstance(asked, Sequence | np.ndarray) else [asked] * num_episodes
        if len(several) != num_episodes:
            raise SettingsError(f"options names {len(several)} prompts for {num_episodes} environments.")
        for number in several:
            is_number = isinstance(number, int | np.integer) and not isinstance(number, bool)
            if number is not None and not (is_number and 0 <= number < len(self.prompts)):
                raise SettingsError(f"prompt_id is {number!r}; the prompts are 0 to {len(self.prompts) - 1}.")
        return [None if number is None else int(number) for number in several]


def finite_scores(source: RewardSource, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """The source's scores. Raises DataError, naming the answer, for one that is not finite."""
    scores = [float(score) for score in source.score(prompts, completions)]
    for score, completion in zip(scores, completions, strict=True):
        if not np.isfinite(score):
            raise DataError(f"The reward source scored the answer {completion.text[:60]!r} with {score}.")
    return scores


class TokenLevelTask(TextTask):
    """An action is one token. The answer ends with the end token (terminated) or when it is full (truncated).

    Both ends are scored; see `LimitTerminates` for learners that put a value on what comes after a truncated episode.
    """

    observes_answer = True

    def _actions(self) -> spaces.Discrete:
        return spaces.Discrete(self.vocabulary_size)

    def write(self, episode: Episode, action: Any) -> None:
        token = int(action)
        episode.response.append(token)
        episode.terminated = token == self.chat_format.eos_id
        episode.truncated = not episode.terminated and len(episode.response) == self.max_new_tokens


class OneStepTask(TextTask):
    """An action is a whole answer, [max_new_tokens]; what stands behind its first end token is not read.

    Every episode is one step, and terminates: a contextual bandit. An answer without an end token is one that was cut.
    """

    observes_answer = False

    def _actions(self) -> spaces.MultiDiscrete:
        return spaces.MultiDiscrete([self.vocabulary_size] * self.max_new_tokens)

    def write(self, episode: Episode, action: Any) -> None:
        answer = np.asarray(action).tolist()
        eos_id = self.chat_format.eos_id
        episode.response = answer[: answer.index(eos_id) + 1] if eos_id in answer else answer
        episode.terminated = True

    def completion(self, episode: Episode) -> Completion:
        ended = bool(episode.response) and episode.response[-1] == self.chat_format.eos_id
        text = self.chat_format.decode(episode.response)
        return Completion(text, ended=ended, token_ids=tuple(episode.response))
