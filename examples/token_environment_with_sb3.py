"""An outside library learns to answer: stable-baselines3's PPO on the token-level environment.

The vocabulary has eight words, an answer at most four tokens. A prompt is two or three words, its best answer the same
words backwards and then the end token; the rule gives every right token its share, so the best answer is worth 1. PPO
sees tokens and a score, nothing of the rule. Random answers are worth about 0.1; after 30,000 tokens, a few seconds on
one core, the likeliest answer to every prompt is the best one:

    pip install 'prefloop[environments]'
    python examples/token_environment_with_sb3.py
"""

import time

import gymnasium
import torch
from gymnasium import ObservationWrapper, spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefloop.data.chat_format import ChatFormat
from prefloop.environments import LimitTerminates  # Importing the package registers the environments.
from prefloop.records import Completion, Prompt
from prefloop.rollouts.rewards import RuleReward

WORDS = ("<end>", "<unknown>", "sun", "moon", "star", "rain", "snow", "wind")
PROMPTS = ("sun moon", "star rain snow", "wind sun", "snow moon wind")


def word_format() -> ChatFormat:
    """One token for each word."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unknown>")
    return ChatFormat(tokenizer, prompt_format="raw")


FORMAT = word_format()


def best_answer(prompt: Prompt) -> tuple[int, ...]:
    """The tokens of the prompt's words backwards, with the end token."""
    assert isinstance(prompt, str)
    return FORMAT.completion_ids(" ".join(reversed(prompt.split())))


def share_right(prompt: Prompt, completion: Completion) -> float:
    """The share of tokens that stand in their place, of the best answer's or of a longer one's: rambling on costs."""
    best = best_answer(prompt)
    given = completion.token_ids or ()
    return sum(one == other for one, other in zip(given, best, strict=False)) / max(len(given), len(best))


class OneHotTokens(ObservationWrapper):
    """Token numbers say nothing by their size: each place becomes a row with a single one, zeros where it is empty."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        places = env.observation_space["attention_mask"]
        assert isinstance(places, spaces.MultiBinary)
        (num_places,) = places.shape
        tokens = spaces.MultiBinary(num_places * len(WORDS))
        self.observation_space = spaces.Dict({"tokens": tokens, "step": env.observation_space["step"]})

    def observation(self, observation: dict) -> dict:
        rows = torch.nn.functional.one_hot(torch.from_numpy(observation["input_ids"]), len(WORDS)).numpy()
        seen = rows * observation["attention_mask"][:, None]
        return {"tokens": seen.reshape(-1).astype("int8"), "step": observation["step"]}


def environment() -> gymnasium.Env:
    """The registered environment with our rule, in a form that a small network reads."""
    made = gymnasium.make(
        "prefloop/TokenLevel-v0",
        prompts=PROMPTS,
        chat_format=FORMAT,
        vocabulary_size=len(WORDS),
        max_new_tokens=4,
        reward_source=RuleReward(share_right),
    )
    # stable-baselines3 adds the value of what might follow a truncated answer; nothing does.
    return OneHotTokens(LimitTerminates(made))


def train(num_steps: int, *, seed: int = 0) -> PPO:
    """A policy after so many tokens."""
    learner = PPO(
        "MultiInputPolicy",
        make_vec_env(environment, n_envs=8, seed=seed),
        n_steps=128,
        batch_size=256,
        n_epochs=8,
        learning_rate=3e-3,
        gamma=1.0,
        ent_coef=0.03,
        seed=seed,
        device="cpu",
    )
    return learner.learn(num_steps)


def answers(policy: PPO) -> list[tuple[str, str, float]]:
    """To every prompt the likeliest answer, with its score."""
    env = environment()
    found = []
    for number, prompt in enumerate(PROMPTS):
        seen, info = env.reset(options={"prompt_id": number})
        over, score = False, 0.0
        while not over:
            action, _ = policy.predict(seen, deterministic=True)
            seen, reward, terminated, truncated, info = env.step(action)
            over, score = terminated or truncated, float(reward)
        found.append((prompt, info["text"], score))
    return found


def main() -> None:
    torch.set_num_threads(1)
    begun = time.monotonic()
    for prompt, answer, score in answers(train(30_000)):
        print(f"{prompt:16} -> {answer:20} {score:.2f}")
    print(f"{time.monotonic() - begun:.0f} s; the best answer is worth 1.00")


if __name__ == "__main__":
    main()
