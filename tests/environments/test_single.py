"""One answer at a time: what Gymnasium's own checker says, and every number by hand."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from toy_tasks import END, PROMPTS, WORDS, CountedScores, settings

from prefloop.data.chat_format import ChatFormat
from prefloop.environments import OneStepEnvironment, PromptSampler, TokenLevelEnvironment
from prefloop.errors import DataError, SettingsError
from prefloop.models.backbone import Backbone
from prefloop.models.from_scratch import new_model, train_tokenizer
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Message, prompt_text
from prefloop.rollouts.rewards import ModelReward, RuleReward

IDS = ("prefloop/TokenLevel-v0", "prefloop/OneStep-v0")


def made(name: str, **changes: Any) -> Any:
    return gymnasium.make(name, **settings(**changes)).unwrapped


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("talk", [False, True])
def test_the_checker_is_content_without_a_warning(name: str, talk: bool) -> None:
    tokenizer = train_tokenizer(["one two"], vocabulary_size=270)
    prompts = (
        [(Message("system", "Be kind."), Message("user", "one")), (Message("user", "two"),)]
        if talk
        else ["one two three", "four"]
    )
    chat_format = ChatFormat(tokenizer, prompt_format="chat" if talk else "raw")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = made(name, prompts=prompts, chat_format=chat_format, vocabulary_size=len(tokenizer), max_new_tokens=6)
        check_env(env)
        env.close()


@pytest.mark.parametrize("name", IDS)
def test_the_ids_make_what_they_say_and_everything_passes_through(name: str) -> None:
    env = gymnasium.make(name, **settings())
    assert isinstance(env.unwrapped, TokenLevelEnvironment if "Token" in name else OneStepEnvironment)
    env.reset(seed=1)
    env.step(env.action_space.sample())
    env.close()


def test_a_token_level_answer_by_hand() -> None:
    env = TokenLevelEnvironment(**settings())
    assert env.action_space.n == 8  # type: ignore[attr-defined]
    seen, info = env.reset(options={"prompt_id": 1})
    # The start token, "b c", and room for the four tokens of an answer to the longest prompt.
    assert seen["input_ids"].tolist() == [END, 3, 4, 0, 0, 0, 0, 0]
    assert seen["attention_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert seen["step"] == 0
    assert info == {"prompt_id": 1, "prompt": "b c"}
    seen, reward, terminated, truncated, info = env.step(np.int64(5))
    assert seen["input_ids"].tolist() == [END, 3, 4, 5, 0, 0, 0, 0]
    assert (seen["step"], reward, terminated, truncated, info) == (1, 0.0, False, False, {})
    seen, reward, terminated, truncated, info = env.step(END)
    assert seen["attention_mask"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert (reward, terminated, truncated) == (21.0, True, False)
    assert (info["prompt_id"], info["prompt"], info["text"]) == (1, "b c", "d")
    assert info["completion"].token_ids == (5, END)
    assert info["completion"].ended


def test_an_answer_that_is_full_is_truncated_unless_it_ends_there() -> None:
    env = TokenLevelEnvironment(**settings())
    for last, reward, ended in ((2, 40.0, False), (END, 41.0, True)):
        env.reset(seed=0)
        for _ in range(3):
            assert env.step(2)[1:4] == (0.0, False, False)
        *_, found, terminated, truncated, info = env.step(last)
        assert (found, terminated, truncated) == (reward, ended, not ended)
        assert info["completion"].ended is ended


def test_a_one_step_answer_by_hand() -> None:
    source = CountedScores()
    env = OneStepEnvironment(**settings(reward_source=source))
    seen, _ = env.reset(options={"prompt_id": 0})
    assert seen["input_ids"].tolist() == [END, 2, 0, 0]
    assert seen["attention_mask"].tolist() == [1, 1, 0, 0]
    # What stands behind the first end token is not read.
    assert env.step(np.array([3, END, 4, 5]))[1:4] == (21.0, True, False)
    env.reset(options={"prompt_id": 0})
    *_, info = env.step([3, 4, 5, 6])
    assert (info["text"], info["completion"].ended) == ("b c d e", False)
    env.reset()
    assert env.step([END] * 4)[1] == 11.0
    assert source.calls == [1, 1, 1]


def test_one_answer_is_worth_the_same_in_both() -> None:
    rule = RuleReward(lambda prompt, completion: len(prompt_text(prompt)) + len(completion.text) + completion.ended)
    tokens, whole = (kind(**settings(reward_source=rule)) for kind in (TokenLevelEnvironment, OneStepEnvironment))
    random = np.random.default_rng(0)
    for number in range(40):
        answer = random.integers(0, 8, 4)
        options = {"prompt_id": number % 3}
        tokens.reset(options=options)
        whole.reset(options=options)
        rewards, info = [], {}
        for token in answer:
            _, reward, terminated, truncated, info = tokens.step(token)
            rewards.append(reward)
            if terminated or truncated:
                break
        _, reward, _, _, info_whole = whole.step(answer)
        assert rewards == [0.0] * (len(rewards) - 1) + [reward]
        assert info_whole == info


def test_the_return_is_the_reward_model_s_own_score() -> None:
    tokenizer = train_tokenizer(["one two"], vocabulary_size=270)
    model = new_model("gpt2", tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=64, seed=1)
    chat_format = ChatFormat(tokenizer, prompt_format="raw")
    scalar = ScalarModel(Backbone(model), tokenizer)
    source = ModelReward(scalar, chat_format, policy_format=chat_format)
    env = TokenLevelEnvironment(
        ["one two"], chat_format=chat_format, vocabulary_size=len(tokenizer), max_new_tokens=8, reward_source=source
    )
    env.reset()
    for token in (200, 201):
        env.step(token)
    *_, reward, _, _, info = env.step(chat_format.eos_id)
    assert reward == pytest.approx(source.score(["one two"], [info["completion"]])[0], abs=1e-6)


def test_a_seed_fixes_the_prompts_and_each_comes_before_any_comes_again() -> None:
    env = TokenLevelEnvironment(**settings())

    def prompts(seed: int) -> list[int]:
        found = [env.reset(seed=seed)[1]["prompt_id"]]
        return found + [env.reset()[1]["prompt_id"] for _ in range(8)]

    assert prompts(5) == prompts(5)
    assert len({tuple(prompts(seed)) for seed in range(12)}) > 3
    for start in (0, 3, 6):
        assert sorted(prompts(5)[start : start + 3]) == [0, 1, 2]
    # A prompt that is named is not drawn, and the order goes on after it.
    first = env.reset(seed=5)[1]["prompt_id"]
    assert env.reset(options={"prompt_id": 2})[1]["prompt_id"] == 2
    assert [first, env.reset()[1]["prompt_id"]] == prompts(5)[:2]


def test_a_sampler_alone() -> None:
    sampler, random = PromptSampler(4), np.random.default_rng(1)
    assert sorted(sampler.draw(random) for _ in range(4)) == [0, 1, 2, 3]
    sampler.draw(random)
    sampler.restart()
    again = PromptSampler(4)
    assert sampler.draw(np.random.default_rng(2)) == again.draw(np.random.default_rng(2))


@pytest.mark.parametrize("kind", [TokenLevelEnvironment, OneStepEnvironment])
def test_observations_are_in_the_space_at_all_times(kind: Any) -> None:
    env = kind(**settings())
    env.action_space.seed(0)
    for _ in range(30):
        seen, _ = env.reset()
        over = False
        while not over:
            assert env.observation_space.contains(seen)
            seen, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
        assert env.observation_space.contains(seen)


def test_actions_that_are_none_and_steps_out_of_turn_are_refused() -> None:
    env, whole = TokenLevelEnvironment(**settings()), OneStepEnvironment(**settings())
    with pytest.raises(ResetNeeded):
        env.step(1)
    env.reset()
    whole.reset()
    for action in (8, -1, 1.0, "a", [1], None, True):
        with pytest.raises(InvalidAction):
            env.step(action)
    for action in (1, [1, 2, 3], [1, 2, 3, 8], [0.5] * 4, [-1] * 4):
        with pytest.raises(InvalidAction):
            whole.step(action)
    env.step(END)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(END)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_id": 3}, "prompt_id is 3; the prompts are 0 to 2."),
        ({"prompt_id": -1}, "prompt_id is -1"),
        ({"prompt_id": True}, "prompt_id is True"),
        ({"prompt_id": "a"}, "prompt_id is 'a'|names 1 prompts"),
        ({"prompt_id": [0, 1]}, "options names 2 prompts for 1 environments"),
        ({"promptid": 0}, "options has promptid; prompt_id is the only one."),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        TokenLevelEnvironment(**settings()).reset(options=options)


def test_settings_that_cannot_work_are_refused() -> None:
    for changes, words in (
        ({"prompts": []}, "prompts is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"vocabulary_size": 0}, "no answer could end"),
    ):
        with pytest.raises(SettingsError, match=words):
            TokenLevelEnvironment(**settings(**changes))
    with pytest.raises(DataError, match="Prompt 2 has the token 7; vocabulary_size is 7"):
        TokenLevelEnvironment(**settings(vocabulary_size=7))


def test_a_score_that_is_not_finite_is_an_error_and_no_source_scores_nothing() -> None:
    env = TokenLevelEnvironment(**settings(reward_source=RuleReward(lambda *_: float("nan"))))
    env.reset()
    env.step(2)
    with pytest.raises(DataError, match="scored the answer 'a' with nan"):
        env.step(END)
    bare = TokenLevelEnvironment(**settings(reward_source=None))
    bare.reset()
    assert bare.step(END)[1] == 0.0


def test_rendering_is_prompt_and_answer() -> None:
    env = TokenLevelEnvironment(**settings(render_mode="ansi"))
    env.reset(options={"prompt_id": 2})
    env.step(WORDS.index("a"))
    env.step(WORDS.index("b"))
    assert env.render() == f"{PROMPTS[2]}\na b"
    assert TokenLevelEnvironment(**settings()).render() is None
