"""prefloop serve: what it refuses before it serves, and what the model is called."""

from pathlib import Path

import pytest
from command_line import Prefloop, Whole

from prefloop.cli.serve import served_name


def test_clients_learn_the_folder_s_name_and_no_path(tmp_path: Path) -> None:
    (tmp_path / "demo" / "ppo" / "final").mkdir(parents=True)
    assert served_name(str(tmp_path / "demo" / "ppo")) == "ppo"
    assert served_name(str(tmp_path / "demo" / "ppo" / "final")) == "ppo"
    assert served_name(str(tmp_path / "demo" / "ppo" / "..")) == "demo"
    assert served_name("org/model") == "org/model"


def test_an_open_address_is_refused_before_the_model_is_read(
    prefloop: Prefloop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFLOOP_API_KEY", raising=False)
    done = prefloop("serve", "no/such/model", "--host", "0.0.0.0")
    assert done.code == 2
    assert "0.0.0.0 can be reached from other machines: give --api-key" in done.err
    monkeypatch.setenv("PREFLOOP_API_KEY", "from the environment")
    assert "must be ASCII without spaces" in prefloop("serve", "no/such/model").err


def test_what_cannot_be_served_says_what_can(whole: Whole, prefloop: Prefloop) -> None:
    done = prefloop("serve", whole.folder / "reward")
    assert done.code == 1
    assert "is a reward model: give a language model" in done.err
    assert "is a whole pipeline: name one of its models" in prefloop("serve", whole.folder).err
