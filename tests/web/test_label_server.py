"""The label server as a process: where it listens, what it says, how it stops, and how light it starts."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_projects import new_project, say

from prefloop.collection.store import LabelStore
from prefloop.errors import RunError, SettingsError
from prefloop.web import label_server
from prefloop.web.label_server import first_link, running_server, serve
from prefloop.web.listening import is_loopback

SERVED = """
import sys, time
begun = time.monotonic()
from prefloop.collection.store import open_store
from prefloop.web.label_server import first_link, serve
store = open_store(sys.argv[1])
def say(line):
    print(line, flush=True)
    if line.startswith("Ctrl-C"):
        heavy = {"torch", "matplotlib", "sklearn", "scipy", "statsmodels", "pandas", "transformers"} & set(sys.modules)
        print("heavy", sorted(heavy), round(time.monotonic() - begun, 2), flush=True)
serve(store, port=0, links=first_link(store, "Ben"), open_browser=False, say=say)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    with new_project(tmp_path, num_pairs=4) as made:
        yield made


def test_it_starts_light_prints_the_link_and_stops_with_ctrl_c(store: LabelStore) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVED, store.location], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline().rstrip() for _ in range(4)]
        url = lines[0].removeprefix("The label page is at ")
        assert lines[1].startswith(f"  Ben signs in at {url}/join/")
        assert lines[2] == "Ctrl-C stops it."
        assert lines[3].startswith("heavy [] ")
        token = lines[1].rpartition("/")[2]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
            _wait_until_up(client)
            task = client.post("/api/next", json={"num": 1}).json()["tasks"][0]
            label = {"submission_id": "submission-1", "task_id": task["task_id"], "choice": "tie"}
            label |= {"opened_at": 1.0, "submitted_at": 2.0, "rationale": "private words"}
            assert client.post("/api/labels", json=label).status_code == 200
            assert client.get(f"/join/{token}").status_code == 303
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == "Stopped. 1 of 12 labels are stored.\n"
    # Nothing is logged: no token, no text, no address.
    assert errors == ""


def _wait_until_up(client: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert client.get("/health").json() == {"ok": True}
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_first_link_makes_an_admin_once(store: LabelStore) -> None:
    (token,) = first_link(store, " Ben ").values()
    account = store.account_of_link(token)
    assert account is not None
    assert (account.name, account.role) == ("Ben", "admin")
    again = first_link(store, "ben")
    assert store.account_of_link(token) is None
    assert [one.name for one in store.accounts()] == ["Ben"]
    assert store.account_of_link(again["ben"]) == account


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "label.example", "127.0.0.1.example"])
def test_an_address_others_can_reach_needs_accounts(store: LabelStore, host: str) -> None:
    with pytest.raises(SettingsError, match="has no accounts"):
        serve(store, host=host, port=0, open_browser=False)
    store.add_account("Ben")
    store.deactivate("Ben")
    with pytest.raises(SettingsError, match="has no accounts"):
        serve(store, host=host, port=0, open_browser=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_needs_a_name(store: LabelStore, host: str) -> None:
    store.add_account("Ben")
    with pytest.raises(SettingsError, match="under which name people come"):
        serve(store, host=host, port=0, open_browser=False)


def test_an_address_that_is_not_ours_or_taken_is_said_plainly(store: LabelStore) -> None:
    store.add_account("Ben")
    with pytest.raises(RunError, match=r"Port 0 of 192\.0\.2\.1 cannot be used"):
        serve(store, host="192.0.2.1", port=0, open_browser=False)
    with pytest.raises(RunError, match="There is no address"):
        serve(store, host="nowhere.invalid", port=0, open_browser=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"Port {port} of 127.0.0.1 cannot be used"):
            serve(store, port=port, open_browser=False)


def test_loopback_is_known_by_its_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", ""))


def serve_until_up(store: LabelStore, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """What `serve` says and opens; it is stopped as Ctrl-C does once the browser has been opened."""
    said: list[str] = []
    opened = threading.Event()

    def open_page(address: str) -> bool:
        said.append(f"opened {address}")
        opened.set()
        os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(webbrowser, "open", open_page)
    serve(store, port=0, say=said.append, **options)
    assert opened.is_set()
    return said


def test_the_browser_opens_the_first_link(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    links = {"Ben\x1b[2J": store.add_account("Ben"), "Ada": store.add_account("Ada")}
    said = serve_until_up(store, monkeypatch, links=links)
    url = said[0].removeprefix("The label page is at ")
    assert said[1:] == [
        f"  Ben\ufffd[2J signs in at {url}/join/{links['Ben' + chr(27) + '[2J']}",
        f"  Ada signs in at {url}/join/{links['Ada']}",
        "Ctrl-C stops it.",
        f"opened {url}/join/{links['Ben' + chr(27) + '[2J']}",
        "Stopped. 0 of 12 labels are stored.",
    ]


def test_the_public_url_is_what_people_are_told(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_account("Ben")
    said = serve_until_up(store, monkeypatch, host="0.0.0.0", public_url="https://label.example/")
    assert said[0] == "The label page is at https://label.example"
    assert "opened https://label.example" in said
    assert not any("in the clear" in line for line in said)
    said = serve_until_up(store, monkeypatch, host="0.0.0.0", allowed_hosts=["label.example"])
    assert said[0].startswith("The label page is at http://label.example:")
    assert any("in the clear" in line for line in said)


def test_without_a_browser_the_person_is_told(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    said: list[str] = []

    class Started:
        started = True

    label_server._open_when_started(Started(), "http://127.0.0.1:1", said.append)  # type: ignore[arg-type]
    assert said == ["No browser could be opened here: open the address in one."]


def test_a_running_server_answers_under_the_names_of_loopback_only(store: LabelStore) -> None:
    with running_server(store) as url:
        port = int(url.rpartition(":")[2])

        def status(host: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/health", headers={"Host": host})
            found = connection.getresponse().status
            connection.close()
            return found

        assert [status(f"{name}:{port}") for name in ("127.0.0.1", "localhost", "[::1]")] == [200] * 3
        assert [status(host) for host in ("localhost", f"localhost:{port + 1}", f"evil.example:{port}")] == [403] * 3
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_server_that_does_not_come_up_is_an_error(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_server.uvicorn.Server, "run", lambda *_, **__: None)
    with pytest.raises(RunError, match="did not start"), running_server(store):
        pass


def test_two_servers_share_a_store(store: LabelStore) -> None:
    token = store.add_account("Ben")
    headers = {"Authorization": f"Bearer {token}"}
    with running_server(store) as one, running_server(store) as other:
        tasks = [
            httpx.post(f"{url}/api/next", json={"num": 1}, headers=headers).json()["tasks"] for url in (one, other)
        ]
    assert tasks[0][0]["task_id"] == tasks[1][0]["task_id"]
    say(store, "Ben")


def test_headers_without_end_are_refused(store: LabelStore) -> None:
    with running_server(store) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\n".encode())

            def send_on() -> None:
                for _ in range(1_000):
                    connection.sendall(b"X-More: " + b"x" * 1_000 + b"\r\n")
                    time.sleep(0.001)

            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                send_on()
