"""prefloop doctor: what it finds on this machine, and that it asks the network only when told to."""

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from command_line import Prefloop

from prefloop.cli import doctor
from prefloop.cli.recipe_verdicts import verdict
from prefloop.cli.recipes import shipped_recipes
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.progress import Progress
from toy_recipes import pipeline_of, world_and_sft, write_recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, whatever this machine has downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_it_looks_at_this_machine_and_asks_no_network(prefloop: Prefloop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    done = prefloop("doctor")
    assert (done.code, done.err) == (0, "")
    for pattern in (
        r"^Python 3\.\d+",
        r"^torch \S+, \d+ threads on \d+ cores$",
        r"^bfloat16 on the processor: ",
        r"^(GPU 0: .*bfloat16|no GPU \()",
        r"^memory \d+ GiB",
        r"^disk: \d+ GiB free in ",
        r"^packages: prefloop \S+, torch ",
        r"^extra postgresql: (installed|not installed; pip install)",
        r"^the Hub was not asked \(--hub does\)$",
        r"^  tutorials: runs here, with no download$",
        r"^  sst2-positive: needs the Hub \(--hub asks whether it answers\) for .*gpt2",
        r"^  controls: not here yet: ",
    ):
        assert re.search(pattern, done.out, flags=re.MULTILINE), pattern
    assert set(re.findall(r"^  ([\w-]+): ", done.out, flags=re.MULTILINE)) == set(shipped_recipes())


@pytest.mark.parametrize(
    ("answers", "words"),
    [(True, "runs here; downloads "), (False, "does not run here: it needs the Hub, which cannot be reached")],
)
def test_hub_asks_once(prefloop: Prefloop, monkeypatch: pytest.MonkeyPatch, answers: bool, words: str) -> None:
    asked: list[str] = []

    def info(self: object, name: str, timeout: float) -> None:
        asked.append(name)
        if not answers:
            raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    done = prefloop("doctor", "--hub")
    assert asked == ["gpt2"]
    assert done.code == 0
    assert words in done.out


def told(recipe: dict[str, Any], tmp_path: Path, **settings: Any) -> str:
    file = write_recipe(tmp_path / "recipe.yaml", recipe)
    known = {"hub_answers": None, "runs": tmp_path / "runs", "hardware": {"num_cpus": 2, "cuda_devices": []}}
    return verdict(file, **(known | settings))


def recipe_of_the_hub() -> dict[str, Any]:
    return {
        "name": "hub",
        "model": "owner/policy",
        "data": "owner/data",
        "stages": {
            "data": {"kind": "prepare", "records": "pairs"},
            "sft": {"kind": "sft", "train": ["data/train.jsonl"]},
            "reward": {"kind": "reward_modelling", "model": "owner/encoder", "train": ["data/train.jsonl"]},
        },
    }


def test_every_name_of_the_hub_comes_with_the_setting_that_replaces_it(tmp_path: Path) -> None:
    words = told(recipe_of_the_hub(), tmp_path)
    assert "for owner/data, owner/policy and owner/encoder" in words
    assert words.endswith("or give local copies: data=PATH model=PATH stages.reward.model=PATH")


def test_what_was_downloaded_before_is_here(tmp_path: Path, cache: Path) -> None:
    for kind, name in (("datasets", "data"), ("models", "policy")):
        (cache / f"{kind}--owner--{name}" / "snapshots" / "main").mkdir(parents=True)
    assert told(recipe_of_the_hub(), tmp_path).endswith(
        "for owner/encoder; or give local copies: stages.reward.model=PATH"
    )
    (cache / "models--owner--encoder" / "snapshots" / "main").mkdir(parents=True)
    assert told(recipe_of_the_hub(), tmp_path) == "runs here, with no download"


def test_a_time_is_told_only_from_a_finished_run_of_the_same_recipe_on_this_hardware(tmp_path: Path) -> None:
    recipe = world_and_sft()
    folder = tmp_path / "runs" / "toy"
    run_pipeline(pipeline_of(recipe), folder, progress=Progress(quiet=True), resume_command="again")
    record = json.loads((folder / "pipeline.json").read_text())
    for stage, seconds in zip(record["stages"], (30.0, 150.0), strict=True):
        stage["seconds"] = seconds
    (folder / "pipeline.json").write_text(json.dumps(record))
    hardware = json.loads((folder / "sft" / "provenance.json").read_text())["hardware"]
    same = told(recipe, tmp_path, hardware=hardware)
    assert same == f"runs here, with no download; took 3 min here, in {folder}"
    plain = "runs here, with no download"
    assert told(recipe | {"seed": 9}, tmp_path, hardware=hardware) == same
    assert told(world_and_sft(4), tmp_path, hardware=hardware) == plain
    assert told(recipe, tmp_path, hardware=hardware | {"num_cpus": 999}) == plain
    (folder / "pipeline.json").write_text(json.dumps(record | {"state": "interrupted"}))
    assert told(recipe, tmp_path, hardware=hardware) == plain
    (folder / "pipeline.json").write_text("{")
    assert told(recipe, tmp_path, hardware=hardware) == plain
    shutil.rmtree(folder)
    assert told(recipe, tmp_path, hardware=hardware) == plain


def test_what_the_processor_can_do_is_read_from_its_list(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\n\nprocessor\t: 1\n", encoding="utf-8")
    assert doctor._processor_flags(file) == {"fpu", "avx512f", "amx_bf16"}
    assert doctor._processor_flags(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"amx_bf16", "fpu"}, "yes (amx_bf16)"), ({"fpu"}, "computed in float32 and rounded"), (None, "unknown")],
)
def test_bfloat16_is_said_for_what_it_is(flags: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_processor_flags", lambda: flags)
    assert list(doctor._processor())[1].startswith(f"bfloat16 on the processor: {words}")


def test_available_memory_is_in_bytes(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16 kB\nMemAvailable:    3 kB\n", encoding="utf-8")
    assert doctor._available_memory(file) == 3072
    assert doctor._available_memory(tmp_path / "none") is None


def test_an_extra_that_is_not_installed_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["numpy>=2", 'nothing-of-that-name>=1; extra == "engines"', 'ruff; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    assert list(doctor._extras()) == [
        'extra engines: not installed; pip install "prefloop[engines]" adds nothing-of-that-name'
    ]


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * doctor.GIB

    for name, value in {
        "is_available": lambda: True,
        "is_bf16_supported": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda number: Properties(),
        "get_device_name": lambda number: "a card",
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", value)
    (line,) = doctor._accelerators()
    assert line.startswith("GPU 0: a card, 80 GiB, CUDA ")
    assert line.endswith("bfloat16 yes")
