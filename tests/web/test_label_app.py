"""The label server's JSON: tasks out, labels in, undo, and what it says when something is wrong."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_projects import label_of, new_project, say
from starlette.testclient import TestClient

from prefloop.collection.label_records import StoredPair
from prefloop.collection.store import LabelStore
from prefloop.errors import DataError
from prefloop.records import Comparison, Completion, Message
from prefloop.web import label_security
from prefloop.web.label_app import label_app


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    with new_project(tmp_path, num_pairs=6, guidelines="Read both.", annotators_per_pair=2) as made:
        yield made


@pytest.fixture
def app_client(store: LabelStore) -> TestClient:
    return TestClient(label_app(store, allowed_hosts={"testserver"}), follow_redirects=False)


@pytest.fixture
def client(store: LabelStore, app_client: TestClient) -> TestClient:
    """Ben, by his link."""
    app_client.headers["Authorization"] = f"Bearer {store.add_account('Ben')}"
    return app_client


def tasks_of(client: TestClient, num: int = 1) -> list[dict[str, Any]]:
    return client.post("/api/next", json={"num": num}).json()["tasks"]


def refusal(answer: Any) -> tuple[int, str]:
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"reason", "message"}
    return answer.status_code, answer.json()["error"]["reason"]


def test_the_project_as_the_page_needs_it(store: LabelStore, client: TestClient) -> None:
    project = client.get("/api/project").json()
    assert project.pop("project_id")
    assert project == {
        "name": "Test project",
        "guidelines": "Read both.",
        "annotators_per_pair": 2,
        "annotator": "Ben",
        "role": "annotator",
        "csrf_token": None,
    }


def test_projects_at_different_places_have_different_ids(tmp_path: Path, client: TestClient) -> None:
    with new_project(tmp_path / "other") as other:
        elsewhere = TestClient(label_app(other, allowed_hosts={"testserver"}))
        elsewhere.headers["Authorization"] = f"Bearer {other.add_account('Ben')}"
        ids = {one.get("/api/project").json()["project_id"] for one in (client, elsewhere)}
    assert len(ids) == 2


def test_a_task_shows_the_texts_and_nothing_about_where_they_come_from(store: LabelStore, client: TestClient) -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Why?"))
    pair = Comparison(
        "secret-id", prompt, Completion("x", ended=False, source="model-one"), Completion("y", source="model-two")
    )
    store.update_settings(store.settings.model_copy(update={"gold_share": 0.5}))
    store.add_pairs([StoredPair(pair, gold_choice="left", margin=0.123)])
    answer = client.post("/api/next", json={"num": 20})
    tasks = answer.json()["tasks"]
    assert all(set(task) == {"task_id", "prompt", "left", "right", "expires_at"} for task in tasks)
    (shown,) = [task for task in tasks if task["left"]["text"] in ("x", "y")]
    assert shown["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    sides = {shown[side]["text"]: shown[side]["ended"] for side in ("left", "right")}
    assert sides == {"x": False, "y": True}
    for secret in ("secret-id", "model-one", "model-two", "0.123", "gold", "kind", "swapped", "margin"):
        assert secret not in answer.text


def test_a_label_is_stored_and_the_next_tasks_come_with_the_receipt(store: LabelStore, client: TestClient) -> None:
    held = tasks_of(client, 2)
    body = label_of(held[0], "right", strength=3, rationale="B names the parts", client_version="test 1")
    answer = client.post("/api/labels", json=body | {"num_next": 2}).json()
    (label,) = store.current_labels()
    assert (label.displayed_choice, label.strength, label.rationale) == ("right", 3, "B names the parts")
    assert (label.annotator, label.submission_id, label.client_version) == ("Ben", body["submission_id"], "test 1")
    assert (label.opened_at, label.submitted_at) == (1000.0, 1010.0)
    assert answer["receipt"] == {
        "event_id": label.event_id,
        "submission_id": body["submission_id"],
        "revision": 1,
        "replayed": False,
    }
    assert answer["tasks"][0]["task_id"] == held[1]["task_id"]
    assert len(answer["tasks"]) == 2
    assert answer["progress"] == {"num_done": 1, "num_left": 5, "is_exact": True}
    assert client.get("/api/progress").json()["progress"] == answer["progress"]


def test_without_num_next_no_task_is_given_out(store: LabelStore, client: TestClient) -> None:
    (task,) = tasks_of(client)
    assert client.post("/api/labels", json=label_of(task)).json()["tasks"] == []


def test_the_same_submission_twice_is_one_label_and_other_content_is_refused(
    store: LabelStore, client: TestClient
) -> None:
    (task,) = tasks_of(client)
    first, again = (client.post("/api/labels", json=label_of(task)).json()["receipt"] for _ in range(2))
    assert again == first | {"replayed": True}
    assert refusal(client.post("/api/labels", json=label_of(task, "right"))) == (409, "id_reused")
    assert len(store.events()) == 1


def test_a_label_for_a_pair_that_others_completed_is_refused_plainly(store: LabelStore, client: TestClient) -> None:
    (task,) = tasks_of(client)
    for name in ("Ada", "Cleo"):
        store.add_account(name)
        for _ in range(6):
            say(store, name, "tie", now=task["expires_at"] + 1)
    answer = client.post("/api/labels", json=label_of(task))
    assert refusal(answer) == (409, "pair_complete")
    assert "no further label" in answer.json()["error"]["message"]


def test_an_unknown_task_and_an_undo_of_nothing_are_refused(client: TestClient) -> None:
    assert refusal(client.post("/api/labels", json=label_of({"task_id": "made up"}))) == (409, "unknown_task")
    assert refusal(client.post("/api/undo", json={"submission_id": "undo-1-of-ben"})) == (409, "nothing_to_undo")


def test_undo_gives_the_task_back_with_what_was_said(store: LabelStore, client: TestClient) -> None:
    (task,) = tasks_of(client)
    client.post("/api/labels", json=label_of(task, "right", strength=2, rationale="shorter"))
    first, again = (client.post("/api/undo", json={"submission_id": "undo-1-of-ben"}).json() for _ in range(2))
    assert first["task"] | {"expires_at": 0} == task | {"expires_at": 0}
    assert first["previous"] == {"choice": "right", "strength": 2, "rationale": "shorter"}
    assert first["progress"]["num_done"] == 0
    assert again["receipt"] == first["receipt"] | {"replayed": True}
    assert store.current_labels() == []


MALFORMED = [
    ("/api/labels", b"", "not valid JSON"),
    ("/api/labels", b"{", "not valid JSON"),
    ("/api/labels", b"\xff", "not valid JSON"),
    ("/api/labels", b"[]", "The body should be"),
    ("/api/labels", b"[" * 100_000, "not valid JSON"),
    ("/api/labels", b'{"choice": "left"}', "submission_id is missing. task_id is missing."),
    ("/api/labels", {"choice": "up"}, "choice should be 'left', 'right', 'tie', 'both_bad' or 'skip'"),
    ("/api/labels", {"choice": None}, "choice should be"),
    ("/api/labels", {"strength": 5}, "strength should be less than or equal to 4"),
    ("/api/labels", {"strength": "3"}, "strength should be a valid integer"),
    ("/api/labels", {"strength": 3, "choice": "tie"}, "Only left and right have one."),
    ("/api/labels", {"submission_id": "short"}, "submission_id: String should have at least 8 characters"),
    ("/api/labels", {"submission_id": 12345678}, "submission_id should be a valid string"),
    ("/api/labels", {"rationale": "x" * 10_001}, "rationale: String should have at most 10000 characters"),
    ("/api/labels", {"rationale": "a\0b"}, "NUL"),
    ("/api/labels", {"task_id": "\0"}, "NUL"),
    ("/api/labels", {"opened_at": -1}, "opened_at should be greater than or equal to 0"),
    ("/api/labels", {"annotator": "Ada"}, "annotator is not a known field."),
    ("/api/labels", {"num_next": 21}, "num_next should be less than or equal to 20"),
    ("/api/labels", {"num_next": -1}, "num_next should be"),
    ("/api/labels", b'{"rationale": "\\ud800", "choice": "left"}', "not valid JSON"),
    ("/api/labels", b'{"opened_at": NaN}', "opened_at should be a finite number"),
    ("/api/labels", b'{"opened_at": 1e999}', "opened_at should be a finite number"),
    ("/api/next", {"num": 0}, "num should be"),
    ("/api/next", {"num": 10**30}, "num should be"),
    ("/api/next", {"num": True}, "num should be a valid integer"),
    ("/api/undo", {}, "submission_id is missing"),
    ("/api/undo", {"submission_id": "undo\0number"}, "NUL"),
]


@pytest.mark.parametrize(("path", "body", "said"), MALFORMED, ids=lambda value: str(value)[:40])
def test_a_malformed_body_is_explained_and_changes_nothing(
    store: LabelStore, client: TestClient, path: str, body: Any, said: str
) -> None:
    if isinstance(body, dict) and path == "/api/labels":
        body = label_of({"task_id": "some task"}) | body
    sent: dict[str, Any] = {"json": body} if isinstance(body, dict) else {"content": body}
    answer = client.post(path, **sent, headers={"Content-Type": "application/json"})
    assert refusal(answer) == (422, "malformed")
    assert said in answer.json()["error"]["message"]
    assert "pydantic" not in answer.text
    assert store.events() == []


def test_a_fault_is_explained_without_repeating_what_was_written(client: TestClient) -> None:
    body = label_of({"task_id": "some task"}) | {"rationale": "private words" * 1000}
    assert "private" not in client.post("/api/labels", json=body).text


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_bodies_are_json(client: TestClient, content_type: str) -> None:
    answer = client.post("/api/next", content=b'{"num": 1}', headers={"Content-Type": content_type})
    assert refusal(answer) == (415, "not_json")


def test_a_body_of_one_mebibyte_is_read_and_a_larger_one_is_not(client: TestClient) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    body = b'{"num": 1' + b" " * (2**20 - 10) + b"}"
    assert client.post("/api/next", content=body, headers=headers).status_code == 200
    assert refusal(client.post("/api/next", content=body + b" ", headers=headers)) == (413, "too_large")
    parts = (b" " * 100_000 for _ in range(20))
    assert refusal(client.post("/api/next", content=parts, headers=headers)) == (413, "too_large")


def test_a_body_that_never_ends_is_given_up(
    store: LabelStore, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_security, "BODY_SECONDS", 0.05)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/next",
        "raw_path": b"/api/next",
        "root_path": "",
        "query_string": b"",
        "server": ("testserver", 80),
        "client": ("testclient", 1),
        "headers": [
            (b"host", b"testserver"),
            (b"content-type", b"application/json"),
            (b"authorization", client.headers["authorization"].encode()),
        ],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(label_app(store, allowed_hosts={"testserver"})(scope, receive, send), 5))
    assert sent[0]["status"] == 408


def test_an_error_in_the_server_shows_no_traceback_and_logs_no_text(
    store: LabelStore, client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("private words of a rationale")

    monkeypatch.setattr(store, "submit_and_next", fail)
    with caplog.at_level(logging.DEBUG):
        answer = client.post("/api/labels", json=label_of({"task_id": "some task"}, rationale="private words"))
    assert refusal(answer) == (500, "internal")
    assert "RuntimeError" in caplog.text
    assert "label_app.py:" in caplog.text
    for text in (answer.text, caplog.text):
        assert "private" not in text
        assert "Traceback" not in text
        assert client.headers["authorization"].split()[1] not in text


def test_a_store_that_fails_is_no_fault_of_the_client(
    store: LabelStore, client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise DataError("The label store /secret/place cannot be written: disk full.")

    (task,) = tasks_of(client)
    monkeypatch.setattr(store, "submit_and_next", fail)
    answer = client.post("/api/labels", json=label_of(task))
    assert refusal(answer) == (503, "store")
    assert "secret" not in answer.text + caplog.text


@pytest.mark.parametrize("path", ["/nothing", "/api/nothing", "/static/../label_app.py", "/docs", "/openapi.json"])
def test_what_is_not_there_is_said_as_the_caller_reads(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    is_json = answer.headers["content-type"] == "application/json"
    assert is_json == path.startswith("/api/")
    assert client.put("/api/next").status_code == 405


@pytest.mark.parametrize(
    "name", ["..%2flabel_app.py", "%2e%2e/label_app.py", "report.css", "label.html", "label.js%00"]
)
def test_only_the_page_s_own_files_are_served(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_static_files_are_fetched_again_only_when_they_changed(client: TestClient) -> None:
    first = client.get("/static/label.js")
    assert first.headers["content-type"].startswith("text/javascript")
    assert client.get("/static/label.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert client.get("/static/label.js", headers={"If-None-Match": '"other"'}).content == first.content


def test_what_people_wrote_is_escaped_in_every_page(store: LabelStore, app_client: TestClient) -> None:
    store.update_settings(store.settings.model_copy(update={"name": "<b>name</b>", "guidelines": "<i>{{ 7*7 }}</i>"}))
    token = store.add_account('<img src=x onerror="1">', role="admin")
    say(store, '<img src=x onerror="1">')
    app_client.headers["Authorization"] = f"Bearer {token}"
    for path in ("/", "/sign-in", "/admin"):
        text = app_client.get(path).text
        assert "&lt;b&gt;name&lt;/b&gt;" in text
        assert "<b>name" not in text
        assert "<img" not in text
    assert "&lt;i&gt;{{ 7*7 }}&lt;/i&gt;" in app_client.get("/").text
    assert "&lt;img src=x" in app_client.get("/admin").text
