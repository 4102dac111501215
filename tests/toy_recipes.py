"""Recipes that run in seconds: every kind of stage, a model of a few thousand weights, two or three steps each."""

from pathlib import Path
from typing import Any

from prefloop.runs.settings import to_yaml, validate
from prefloop.runs.stage_settings import Pipeline, Recipe

SCRATCH = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 160, "sentence_min_count": 3}
PPO_TRAINING = {
    "num_steps": 2,
    "rollouts_per_step": 4,
    "minibatch_size": 2,
    "max_new_tokens": 16,
    "num_evaluation_samples": 2,
}


NUM_DEMONSTRATIONS = 120


def sft_training(num_steps: int) -> dict[str, Any]:
    """So many steps of four demonstrations."""
    return {"num_epochs": 4 * num_steps / NUM_DEMONSTRATIONS, "batch_size": 4, "learning_rate": 5e-3}


def tutorials() -> dict[str, Any]:
    """The embedded world's whole loop in small."""
    stages: dict[str, Any] = {
        "world": {"kind": "world", "num_demonstrations": NUM_DEMONSTRATIONS},
        "sft": {
            "kind": "sft",
            "from_scratch": SCRATCH,
            "prompt_format": "chat",
            "max_length": 128,
            "train": ["world/demonstrations.jsonl"],
            "training": sft_training(3),
        },
        "pairs": {
            "kind": "collect",
            "policy": "sft",
            "prompts": "world/prompts.jsonl",
            "num_pairs": 12,
            "candidates_per_prompt": 3,
            "max_new_tokens": 16,
        },
        "labels": {"kind": "label", "comparisons": "pairs/comparisons.jsonl"},
        "reward": {
            "kind": "reward_modelling",
            "model": "sft",
            "max_length": 128,
            "train": ["labels/preferences.jsonl"],
            "training": {"num_epochs": 1, "batch_size": 4},
        },
        "dpo": {
            "kind": "dpo",
            "policy": "sft",
            "max_length": 128,
            "train": ["labels/preferences.jsonl"],
            "training": {"num_epochs": 1, "batch_size": 4},
        },
        "ppo": {
            "kind": "ppo",
            "policy": "sft",
            "reward_model": "reward",
            "prompts": "world/prompts.jsonl",
            "evaluation_prompts": "world/held_out.jsonl",
            "judge": {"kind": "rubric"},
            "max_length": 128,
            "training": PPO_TRAINING,
        },
        "reward_report": {
            "kind": "evaluate_reward",
            "reward_model": "reward",
            "comparisons": "pairs/comparisons.jsonl",
            "train_pairs": ["labels/preferences.jsonl"],
        },
        "policies": {
            "kind": "evaluate_policies",
            "policies": {"sft": "sft", "dpo": "dpo", "ppo": "ppo"},
            "reference": "sft",
            "greedy": ["sft"],
            "best_of_n": 2,
            "reward_model": "reward",
            "prompts": "world/held_out.jsonl",
            "num_samples": 6,
            "max_new_tokens": 16,
            "judge": {"kind": "rubric"},
        },
    }
    return {"name": "toy", "seed": 3, "stages": stages, "next_commands": ["prefloop chat {folder}/ppo"]}


def world_and_sft(num_steps: int = 3) -> dict[str, Any]:
    """The first two stages."""
    recipe = tutorials()
    kept = {name: recipe["stages"][name] for name in ("world", "sft")}
    kept["sft"] = kept["sft"] | {"training": sft_training(num_steps)}
    return recipe | {"stages": kept, "next_commands": []}


def pipeline_of(recipe: dict[str, Any]) -> Pipeline:
    return validate(Pipeline, recipe, origin="the test")


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """The recipe as a YAML file, whichever kind it is."""
    model: type[Pipeline | Recipe] = Pipeline if "stages" in recipe else Recipe
    path.write_text(to_yaml(validate(model, recipe, origin="the test")), encoding="utf-8")
    return path
