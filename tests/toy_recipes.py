"""Recipes that run in seconds: every kind of stage, a model of a few thousand weights, two or three steps each."""

import gzip
import json
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


def tiny_llama(folder: Path, *, end_token: bool = True) -> Path:
    """A random llama of 64 positions with a byte-level tokenizer, saved as anybody would save one."""
    from prefloop.models.from_scratch import new_model, train_tokenizer

    tokenizer = train_tokenizer(["a fine and moving film .", "a dull , lifeless mess ."], vocabulary_size=280)
    model = new_model("llama", tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=64, seed=1)
    tokenizer.chat_template = None
    if not end_token:
        tokenizer.eos_token = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sst2_folder(folder: Path) -> Path:
    """train.csv, dev.csv.gz and test.csv.gz with label and sentence; the test labels are all hidden (-1)."""
    folder.mkdir()
    moods = {1: ("fine", "moving", "clever", "warm"), 0: ("dull", "lifeless", "clumsy", "cold")}
    parts = {"train.csv": 60, "dev.csv.gz": 20, "test.csv.gz": 10}
    number = 0
    for name, num_rows in parts.items():
        lines = ["label,sentence"]
        for _ in range(num_rows):
            label = number % 2
            mood = moods[label][number // 2 % 4]
            lines.append(f"{-1 if name.startswith('test') else label},a {mood} film of {number} minutes")
            number += 1
        opened = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return folder


def tiny_gpt2(folder: Path) -> Path:
    """A random GPT-2 of 160 positions with a byte-level tokenizer that has no template and no padding token."""
    from prefloop.models.from_scratch import new_model, train_tokenizer

    texts = [f"{question} {answer}" for question, answer in QUESTIONS.items()] * 3
    tokenizer = train_tokenizer([f"Human: {text}\n\nAssistant:" for text in texts], vocabulary_size=400)
    model = new_model("gpt2", tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=160, seed=1)
    tokenizer.chat_template = None
    tokenizer.pad_token = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


QUESTIONS = {
    "Name a red fruit.": "A cherry is red.",
    "Name a yellow fruit.": "A lemon is yellow.",
    "Name an animal that barks.": "A dog barks.",
    "Name an animal that can fly.": "An owl can fly.",
    "Which tool cuts paper?": "Scissors cut paper.",
    "Which tool drives nails?": "A hammer drives nails.",
}
"""What the toy data sets of instructions ask, and how it is answered."""


def instructions_file(path: Path, *, num_rows: int) -> Path:
    """JSONL of instructions with their inputs and outputs, every row of its own."""
    questions = list(QUESTIONS.items())
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            question, answer = questions[number % len(questions)]
            given = f"Case {number}" if number % 2 else ""
            asked = question if number % 2 else f"Case {number}. {question}"
            file.write(json.dumps({"instruction": asked, "input": given, "output": answer}) + "\n")
    return path


def dialogues_file(path: Path, *, num_rows: int) -> Path:
    """JSONL of whole dialogues that part at their last answer: chosen is to the point, rejected shrugs."""
    questions = list(QUESTIONS.items())
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            question, answer = questions[number % len(questions)]
            shared = f"\n\nHuman: Hello, I am number {number}.\n\nAssistant: Hi.\n\nHuman: {question}\n\nAssistant:"
            row = {"chosen": f"{shared} {answer}", "rejected": f"{shared} I do not know about that."}
            file.write(json.dumps(row) + "\n")
    return path
