"""prefloop doctor: what this machine has, and which recipes run on it."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    hub: Annotated[bool, typer.Option("--hub", help="Also ask whether the model Hub can be reached.")] = False,
) -> None:
    """What this machine has, and which recipes run on it."""
    from prefloop.cli.quiet_libraries import hush

    hush()
    import torch

    from prefloop.runs.provenance import provenance

    facts = provenance({})
    print(f"Python {platform.python_version()} on {platform.platform()} ({sys.executable})")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            print(f"GPU {number}: {torch.cuda.get_device_name(number)}, {memory:.0f} GiB, bfloat16 {_bf16_on_gpu()}")
    else:
        print("no GPU: models of some million parameters train here, larger ones slowly")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    print(f"memory {total:.0f} GiB, free disk {free:.0f} GiB here")
    print("packages: " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    reachable = _hub_reachable() if hub else None
    if hub:
        print(
            "the Hub can be reached"
            if reachable
            else "the Hub cannot be reached: models and data must be local folders"
        )
    print("recipes:")
    for name, verdict in _verdicts(reachable):
        print(f"  {name}: {verdict}")


def _bf16_on_gpu() -> str:
    import torch

    return "yes" if torch.cuda.is_bf16_supported() else "no"


def _hub_reachable() -> bool:
    """Asked only with --hub: no other command of ours looks for the network on its own account."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("gpt2", timeout=5)
    except Exception:
        return False
    return True


def _verdicts(reachable: bool | None) -> list[tuple[str, str]]:
    """For each shipped recipe whether it runs here as it stands."""
    from prefloop.cli.recipes import shipped_recipes
    from prefloop.errors import SettingsError
    from prefloop.runs.plan import check
    from prefloop.runs.settings import load_yaml, validate
    from prefloop.runs.stage_settings import Pipeline

    verdicts = []
    for name, path in shipped_recipes().items():
        recipe = load_yaml(path)
        try:
            check(validate(Pipeline, recipe, origin=str(path)))
        except SettingsError as problem:
            missing_input = str(problem).splitlines()[1].strip()
            verdicts.append((name, f"not here yet: {missing_input}"))
            continue
        outside = [str(recipe[key]) for key in ("model", "data") if recipe.get(key)]
        missing = [one for one in outside if not Path(one).exists()]
        if not missing:
            verdicts.append((name, "runs here, with no download"))
        elif reachable:
            verdicts.append((name, f"runs here; downloads {' and '.join(missing)}"))
        else:
            how = " ".join(f"{key}=PATH" for key in ("model", "data") if recipe.get(key))
            why = (
                "needs the Hub, which cannot be reached"
                if reachable is False
                else "needs the Hub (--hub asks whether it answers)"
            )
            verdicts.append((name, f"{why} for {' and '.join(missing)}; or give local folders: {how}"))
    return verdicts
