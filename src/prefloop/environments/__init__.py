"""Answering a prompt as Gymnasium environments, for learners from elsewhere. No policy lives in here.

Importing this registers `prefloop/TokenLevel-v0` (an action is a token) and `prefloop/OneStep-v0` (an action is a whole
answer). Both are made with `gymnasium.make(id, prompts=..., chat_format=..., vocabulary_size=..., max_new_tokens=...,
reward_source=...)`, and many at once, scored together, with `gymnasium.make_vec(id, num_envs=..., ...)`.
"""

try:
    import gymnasium
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "prefloop.environments needs Gymnasium: pip install 'prefloop[environments]'", name=missing.name
    ) from missing

from prefloop.environments.single import OneStepEnvironment, TokenLevelEnvironment
from prefloop.environments.tasks import PromptSampler
from prefloop.environments.vector import OneStepVectorEnvironment, TokenLevelVectorEnvironment
from prefloop.environments.wrappers import (
    LimitTerminates,
    RewardFromSource,
    VectorLimitTerminates,
    VectorRewardFromSource,
)

__all__ = [
    "LimitTerminates",
    "OneStepEnvironment",
    "OneStepVectorEnvironment",
    "PromptSampler",
    "RewardFromSource",
    "TokenLevelEnvironment",
    "TokenLevelVectorEnvironment",
    "VectorLimitTerminates",
    "VectorRewardFromSource",
]

for _name in ("TokenLevel", "OneStep"):
    gymnasium.register(
        f"prefloop/{_name}-v0",
        entry_point=f"prefloop.environments.single:{_name}Environment",
        vector_entry_point=f"prefloop.environments.vector:{_name}VectorEnvironment",
        # Times are part of the observation, and an answer always ends: no limit of steps is put around it.
        max_episode_steps=None,
    )
