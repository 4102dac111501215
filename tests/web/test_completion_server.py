"""Serving a model as a process, and the addresses at which that is refused."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from served_models import client_of, small_engine

from prefloop.errors import RunError, SettingsError
from prefloop.web import completion_server, listening
from prefloop.web.completion_server import check_address, serve
from prefloop.web.listening import base_url, bound_socket, in_background, is_loopback, own_names
from toy_recipes import tiny_llama


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    command = [sys.executable, "-m", "prefloop.cli.main", "serve", str(folder), "--port", "0", "--api-key", "key-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(2)]
        assert lines[0].startswith("llama answers at http://127.0.0.1:")
        assert lines[1] == "Ctrl-C stops it."
        url = lines[0].removeprefix("llama answers at ").partition(" ")[0]
        with httpx.HTTPTransport(retries=10) as transport, httpx.Client(transport=transport) as waiting:
            assert waiting.get(f"{url.removesuffix('/v1')}/health").json() == {"ok": True}
        with client_of(url, api_key="key-1") as client:
            answer = client.chat.completions.create(
                model="llama", messages=[{"role": "user", "content": "a fine"}], max_tokens=4
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens <= 4
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, "Stopped.\n", "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "127.0.0.1.example"])
def test_an_address_that_others_can_reach_needs_a_key(host: str) -> None:
    with pytest.raises(SettingsError, match="can be reached from other machines: give --api-key"):
        check_address(host, api_key=None, allowed_hosts=["model.example"])
    check_address(host, api_key="key", allowed_hosts=["model.example"])
    check_address("127.0.0.1", api_key=None, allowed_hosts=[])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_needs_a_name(host: str) -> None:
    with pytest.raises(SettingsError, match="under which name others come with --allowed-host"):
        check_address(host, api_key="key", allowed_hosts=[])


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "a\nb", " "])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="must be ASCII without spaces"):
        check_address("127.0.0.1", api_key=key, allowed_hosts=[])


def test_serve_checks_the_address_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine()
    try:
        with pytest.raises(SettingsError, match="give --api-key"):
            serve(engine, host="0.0.0.0")
        with pytest.raises(RunError, match=r"Port 0 of 192\.0\.2\.1 cannot be used"):
            serve(engine, host="192.0.2.1", port=0, api_key="key")
        said: list[str] = []
        monkeypatch.setattr(completion_server.uvicorn.Server, "run", lambda *_, **__: None)
        serve(engine, host="0.0.0.0", port=0, api_key="key", allowed_hosts=["model.example"], say=said.append)
    finally:
        engine.close()
    assert said[0].startswith("tiny answers at http://model.example:")
    assert "in the clear" in said[1]
    assert said[2:] == ["Ctrl-C stops it.", "Stopped."]


# Listening


def test_loopback_is_known_by_its_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", ""))


def test_names_and_addresses() -> None:
    assert own_names("127.0.0.1", 80) == {"127.0.0.1:80", "localhost:80", "[::1]:80"}
    assert own_names("::1", 80) == own_names("localhost", 80) == own_names("127.0.0.1", 80)
    assert own_names("192.0.2.1", 80) == {"192.0.2.1:80"}
    assert own_names("2001:db8::1", 80) == {"[2001:db8::1]:80"}
    assert own_names("0.0.0.0", 80) == set()
    assert base_url("::1", 80, ()) == "http://[::1]:80"
    assert base_url("0.0.0.0", 80, ["model.example"]) == "http://model.example:80"
    assert base_url("0.0.0.0", 80, ["model.example:9"]) == "http://model.example:9"


def test_an_address_that_is_not_ours_or_taken_is_said_plainly() -> None:
    with pytest.raises(RunError, match="There is no address"), bound_socket("nowhere.invalid", 0):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"Port {port} of 127.0.0.1 cannot be used"), bound_socket("127.0.0.1", port):
            pass


def test_a_server_that_does_not_come_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening.uvicorn.Server, "run", lambda *_, **__: None)

    async def nothing(*_: Any) -> None: ...

    with bound_socket("127.0.0.1", 0) as bound:
        server = listening.quiet_server(nothing)
        with pytest.raises(RunError, match="did not start"), in_background(server, bound):
            pass
