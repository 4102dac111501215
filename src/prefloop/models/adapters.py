"""LoRA adapters on disk, so that several roles can share one base.

The layout is PEFT's own, with the scalar head beside it where there is one.
"""

import hashlib
import json
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone

WEIGHTS, CONFIG, HEAD = "adapter_model.safetensors", "adapter_config.json", "score.safetensors"


def base_fingerprint(backbone: Backbone) -> str:
    """A hash of the plain weights of the body: adapters fit only the base that they were trained on."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.plain_state(None).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_adapter(
    backbone: Backbone, adapter: str, folder: Path, *, head: torch.nn.Linear | None = None, fingerprint: str
) -> None:
    """Writes one adapter; `fingerprint` is that of its base."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(backbone.model, adapter_name=adapter)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)
    config = cast(LoraConfig, backbone.model.peft_config[adapter]).to_dict()
    (folder / CONFIG).write_text(json.dumps(config, default=_plain, indent=2) + "\n")
    (folder / "base.json").write_text(json.dumps({"base_fingerprint": fingerprint}) + "\n")
    if head is not None:
        save_file({"score.weight": head.weight.detach().contiguous()}, folder / HEAD)


def fits(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds an adapter that was trained on the base with this fingerprint."""
    base = folder / "base.json"
    return base.is_file() and json.loads(base.read_text())["base_fingerprint"] == fingerprint


def load_adapter(backbone: Backbone, name: str, folder: Path) -> torch.nn.Linear | None:
    """Adds the folder's adapter to the backbone under `name`; returns its scalar head, None where it has none."""
    try:
        config = LoraConfig.from_pretrained(str(folder))
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError) as problem:
        raise ModelError(f"could not read the adapter in {folder}: {problem}") from problem
    backbone.add_adapter(name, config)  # type: ignore[arg-type]
    set_peft_model_state_dict(backbone.model, state, adapter_name=name)
    if not (folder / HEAD).exists():
        return None
    head = torch.nn.Linear(backbone.width, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(load_file(folder / HEAD)["score.weight"])
    return head.to(backbone.device)


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)
