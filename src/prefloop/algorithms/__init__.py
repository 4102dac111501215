"""One algorithm, one file. Adding one is a file and a line in this table; tests, help and docs read it."""

from prefloop.algorithms import dpo, ppo, reward_modelling, sft
from prefloop.contracts import Settings

ALGORITHMS: dict[str, tuple[type, type[Settings]]] = {
    "sft": (sft.SFT, sft.Config),
    "reward_modelling": (reward_modelling.RewardModelling, reward_modelling.Config),
    "dpo": (dpo.DPO, dpo.Config),
    "ppo": (ppo.PPO, ppo.Config),
}
