"""Without a network the Hub's cache is looked into at once, and nobody waits for six attempts."""

import socket

import pytest
from datasets import config
from huggingface_hub import constants

from prefloop.data.sources import read_records
from prefloop.errors import DataError, ModelError
from prefloop.hub import no_vain_waiting
from prefloop.models.backbone import load_tokenizer


def flags() -> tuple[bool, bool]:
    return constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up, none of which exists; no proxy, and no offline mode."""
    names: list[str] = []

    def look_up(name: str, *_: object) -> None:
        names.append(name)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("prefloop.hub.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    return names


def test_where_the_hub_has_no_address_the_libraries_are_offline_for_a_while(asked: list[str]) -> None:
    with no_vain_waiting():
        assert flags() == (True, True)
    assert flags() == (False, False)
    with pytest.raises(ValueError, match="whatever"), no_vain_waiting():
        raise ValueError("whatever")
    assert flags() == (False, False)
    assert len(asked) == 2


def test_a_proxy_resolves_names_itself_and_an_address_is_no_reason(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.hub.getproxies", lambda: {"https": "http://proxy:3128"})
    with no_vain_waiting():
        assert flags() == (False, False)
    assert asked == []
    monkeypatch.setattr("prefloop.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    with no_vain_waiting():
        assert flags() == (False, False)


def test_a_model_and_a_data_set_are_given_up_after_one_look(asked: list[str]) -> None:
    with pytest.raises(ModelError, match="could not load the tokenizer 'nobody/nothing': it is no local folder"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(DataError, match=r"The Hub data set 'nobody/nothing' .* could not be loaded"):
        read_records("nobody/nothing", kind="pairs")
    assert len(asked) == 2
