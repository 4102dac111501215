"""What PPO's four roles take in memory: as adapters on one base (LoRA), and as four models of their own.

    python -m stress.shared_base_memory --hidden-size 768 --num-layers 12 --num-tokens 50257

Makes a GPT-2 of that size from random weights (the sizes given are those of the smallest published one), trains a
reward model on it for one step and PPO for two, each stage in a process of its own, once with LoRA and once in full.
Prints the peak memory that PPO's processes report (peak_memory_mb of metrics.jsonl: resident memory of the process, or
what the accelerator had allocated), and what the weights on disk take.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel

from prefloop.data.sources import write_jsonl
from prefloop.models.from_scratch import train_tokenizer
from prefloop.runs.settings import to_yaml, validate
from prefloop.runs.stage_settings import Recipe

MAX_LENGTH = 64
LORA = {"rank": 16, "alpha": 32, "target_modules": ["c_attn", "c_proj"]}
PAIRS = [
    {"prompt": f"Say the number {number}.", "chosen": f"The number is {number}.", "rejected": "I do not know it."}
    for number in range(16)
]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = _make_base(folder / "base", options)
        write_jsonl(folder / "pairs.jsonl", PAIRS)
        peaks = {
            name: _peak_of_ppo(folder, name, lora=lora, num_rollouts=options.num_rollouts)
            for name, lora in (("shared", LORA), ("separate", None))
        }
    print(f"weights of one model          {size / 1e6:8,.0f} MB")
    print(f"PPO, one base with adapters   {peaks['shared']:8,.0f} MB at its peak")
    print(f"PPO, four models              {peaks['separate']:8,.0f} MB at its peak")
    print(f"one base takes {peaks['shared'] / peaks['separate']:.0%} of four models")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--num-layers", type=int, default=12)
    parser.add_argument("--num-tokens", type=int, default=50257, help="size of the vocabulary")
    parser.add_argument("--num-rollouts", type=int, default=8, help="completions per step")
    return parser.parse_args()


def _make_base(folder: Path, options: argparse.Namespace) -> int:
    """A GPT-2 in float32 with random weights; returns their size in bytes."""
    tokenizer = train_tokenizer([text for row in PAIRS for text in row.values()], vocabulary_size=300)
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    config = GPT2Config(
        vocab_size=max(options.num_tokens, len(tokenizer)),
        n_embd=options.hidden_size,
        n_layer=options.num_layers,
        n_head=options.hidden_size // 64,
        n_positions=1024,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _peak_of_ppo(folder: Path, name: str, *, lora: dict[str, Any] | None, num_rollouts: int) -> float:
    """Peak memory of the PPO stage in MB, after a reward model made the same way."""
    shared = {"max_length": MAX_LENGTH, "prompt_format": "plain", "lora": lora}
    reward = {
        "kind": "reward_modelling",
        "train": [str(folder / "pairs.jsonl")],
        "training": {"num_epochs": 1, "batch_size": 16},
    }
    _train(folder / f"{name}-reward", {**reward, **shared}, folder / "base")
    ppo = {
        "kind": "ppo",
        "policy": str(folder / "base"),
        "reward_model": str(folder / f"{name}-reward" / "final"),
        "prompts": str(folder / "pairs.jsonl"),
        "training": {
            "num_steps": 2,
            "rollouts_per_step": num_rollouts,
            "minibatch_size": num_rollouts,
            "max_new_tokens": 24,
            "num_evaluation_samples": num_rollouts,
        },
    }
    _train(folder / f"{name}-ppo", {**ppo, **shared}, folder / "base")
    rows = (folder / f"{name}-ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(_peak(json.loads(row)) for row in rows)


def _peak(row: dict[str, float]) -> float:
    """The accelerator's memory where there is one, the process's otherwise."""
    return row.get("peak_device_memory_mb") or row.get("peak_memory_mb", 0.0)


def _train(output: Path, stage: dict[str, Any], base: Path) -> None:
    recipe = validate(Recipe, {"name": output.name, "model": str(base), "stage": stage}, origin="the measurement")
    file = output.with_suffix(".yaml")
    file.write_text(to_yaml(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "prefloop.cli.main", "train", str(file), "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
