"""prefloop doctor: what this machine has, and which recipes run on it."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

GIB = 2**30
DEVELOPMENT = frozenset({"dev", "docs"})
"""Extras that nobody needs to use prefloop."""


def command(
    hub: Annotated[bool, typer.Option("--hub", help="Also ask whether the model Hub can be reached.")] = False,
) -> None:
    """What this machine has, and which recipes run on it.

    Nothing is asked of the network without --hub, and nothing is written. A recipe's time is told where runs/ holds a
    finished run of the same recipe on this hardware.
    """
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.cli.recipe_verdicts import verdict
    from prefloop.cli.recipes import shipped_recipes
    from prefloop.runs.provenance import provenance

    facts = provenance({})
    print(f"Python {platform.python_version()} on {platform.platform()} ({sys.executable})")
    for line in (*_processor(), *_accelerators(), _memory(), *_disks()):
        print(line)
    print("packages: " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    for line in _extras():
        print(line)
    hub_answers = _hub_answers() if hub else None
    print(_hub_line(hub_answers))
    print("recipes:")
    for name, file in shipped_recipes().items():
        told = verdict(file, hub_answers=hub_answers, runs=Path("runs"), hardware=facts["hardware"])
        print(f"  {name}: {told}")


def _processor() -> Iterator[str]:
    import torch

    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"
    flags = _processor_flags()
    if flags is None:
        yield "bfloat16 on the processor: unknown, because this system does not list what the processor can do"
        return
    able = sorted(flag for flag in flags if re.fullmatch(r"(amx|avx512|avx)_bf16|bf16", flag))
    yield "bfloat16 on the processor: " + (
        f"yes ({', '.join(able)})"
        if able
        else "computed in float32 and rounded, so precision=float32 is the better choice"
    )


def _processor_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """What the processor can do, as Linux lists it; None elsewhere."""
    if not file.is_file():
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def _accelerators() -> Iterator[str]:
    import torch

    if torch.cuda.is_available():
        bf16 = "yes" if torch.cuda.is_bf16_supported() else "no"
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / GIB
            name = torch.cuda.get_device_name(number)
            yield f"GPU {number}: {name}, {memory:.0f} GiB, CUDA {torch.version.cuda}, bfloat16 {bf16}"
        return
    why = "torch is built without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda} finds none"
    yield f"no GPU ({why}): models of some million parameters train here, larger ones slowly"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    available = _available_memory()
    return f"memory {total:.0f} GiB" + (f", {available / GIB:.0f} GiB of it available" if available is not None else "")


def _available_memory(file: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that new work can have without swapping, as Linux reckons them; None elsewhere."""
    found = (
        re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text(encoding="utf-8"), re.MULTILINE)
        if file.is_file()
        else None
    )
    return int(found[1]) * 1024 if found else None


def _disks() -> Iterator[str]:
    """Free space where runs are written, and where downloads go if that is another disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    yield f"disk: {shutil.disk_usage(Path.cwd()).free / GIB:.0f} GiB free in {Path.cwd()}, where runs/ is written"
    cache = Path(HF_HUB_CACHE).expanduser()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if place.stat().st_dev != Path.cwd().stat().st_dev:
        yield f"disk: {shutil.disk_usage(place).free / GIB:.0f} GiB free in {cache}, where downloads go"


def _extras() -> Iterator[str]:
    """What can be installed on top, and whether it is."""
    needed: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("prefloop") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra == [\"']([\w-]+)[\"']", requirement)
        if name and extra and extra[1] not in DEVELOPMENT:
            needed.setdefault(extra[1], []).append(name[0])
    for extra, names in needed.items():
        absent = [name for name in names if not _is_installed(name)]
        lack = f'not installed; pip install "prefloop[{extra}]" adds {", ".join(absent)}'
        yield f"extra {extra}: " + (lack if absent else "installed")


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _hub_line(hub_answers: bool | None) -> str:
    if hub_answers is None:
        return "the Hub was not asked (--hub does)"
    return (
        "the Hub can be reached" if hub_answers else "the Hub cannot be reached: models and data must be local folders"
    )


def _hub_answers() -> bool:
    """Asked only with --hub: no other command of ours looks for the network on its own account."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("gpt2", timeout=5)
    except Exception:
        return False
    return True
