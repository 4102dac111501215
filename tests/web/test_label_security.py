"""Who gets in: every route for every kind of visitor, and everything that must be turned away."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from label_projects import new_project, say
from starlette.testclient import TestClient

from prefloop.collection.store import LabelStore
from prefloop.errors import SettingsError
from prefloop.web.label_app import label_app
from prefloop.web.label_security import CONTENT_SECURITY_POLICY, AttemptLimit, RequestRefusedError, origin_of

ORIGIN = "http://testserver"
COOKIE = "prefloop_label_80"

LABEL = {
    "submission_id": "submission-1",
    "task_id": "nobody's",
    "choice": "left",
    "opened_at": 1.0,
    "submitted_at": 2.0,
}
# Route -> who may (p: anybody, a: annotators and admins, A: admins), a body, and the status for those who may.
ROUTES: dict[tuple[str, str], tuple[str, Any, int]] = {
    ("GET", "/health"): ("p", None, 200),
    ("GET", "/static/{name}"): ("p", None, 404),
    ("GET", "/sign-in"): ("p", None, 200),
    ("GET", "/join/{token}"): ("p", None, 404),
    ("POST", "/api/sign-in"): ("p", {"name": "nobody", "password": "wrong password"}, 401),
    ("GET", "/"): ("page", None, 200),
    ("POST", "/api/sign-out"): ("a", {}, 200),
    ("GET", "/api/project"): ("a", None, 200),
    ("POST", "/api/next"): ("a", {"num": 2}, 200),
    ("POST", "/api/labels"): ("a", LABEL, 409),
    ("POST", "/api/undo"): ("a", {"submission_id": "undo-number-1"}, 409),
    ("GET", "/api/progress"): ("a", None, 200),
    ("GET", "/admin"): ("A", None, 200),
    ("GET", "/api/statistics"): ("A", None, 200),
    ("POST", "/api/accounts"): ("A", {"name": "Somebody new"}, 200),
    ("POST", "/api/accounts/link"): ("A", {"name": "Ben"}, 200),
    ("POST", "/api/accounts/deactivate"): ("A", {"name": "Ben"}, 200),
}
WRITES = [route for route, (who, _, _) in ROUTES.items() if route[0] == "POST" and who != "p"]
GUARDED = [route for route, (who, _, _) in ROUTES.items() if who in ("a", "A")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    with new_project(tmp_path, num_pairs=4) as made:
        made.add_account("Ada", role="admin")
        made.add_account("Ben")
        yield made


@pytest.fixture
def client(store: LabelStore) -> TestClient:
    return TestClient(
        label_app(store, allowed_hosts={"testserver"}), base_url=ORIGIN, follow_redirects=False, cookies={}
    )


def send(client: TestClient, route: tuple[str, str], headers: dict[str, str] | None = None) -> Any:
    method, path = route
    body = ROUTES[route][1]
    url = path.replace("{name}", "nothing.js").replace("{token}", "nothing")
    return client.request(method, url, json=body if method == "POST" else None, headers=headers or {})


def by_cookie(store: LabelStore, name: str) -> dict[str, str]:
    session = store.start_session(name)
    return {"Cookie": f"{COOKIE}={session.token}", "X-CSRF-Token": session.csrf_token}


def by_link(store: LabelStore, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {store.new_link(name)}"}


def test_the_table_names_every_route(store: LabelStore) -> None:
    app = label_app(store, allowed_hosts={"testserver"})
    found = {
        (method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods or ()
    }
    assert found == set(ROUTES)
    assert len(app.routes) == len(ROUTES)


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
@pytest.mark.parametrize("way", [by_cookie, by_link])
@pytest.mark.parametrize(("name", "role"), [("Ada", "admin"), ("Ben", "annotator")])
def test_each_role_gets_what_it_may(
    store: LabelStore, client: TestClient, route: tuple[str, str], way: Any, name: str, role: str
) -> None:
    who, _, status = ROUTES[route]
    answer = send(client, route, way(store, name))
    if who == "A" and role == "annotator":
        assert answer.status_code == 403
        assert "Only admins" in answer.text
    else:
        assert answer.status_code == status


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_stranger_sees_the_way_in_and_nothing_else(client: TestClient, route: tuple[str, str]) -> None:
    who, _, status = ROUTES[route]
    answer = send(client, route)
    if who == "page":
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    else:
        assert answer.status_code == (status if who == "p" else 401)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("route", sorted(set(WRITES) & set(GUARDED)), ids=" ".join)
def test_a_stranger_s_body_is_not_even_read(client: TestClient, route: tuple[str, str]) -> None:
    too_large, headers = b"x" * 2_000_000, {"Content-Type": "text/plain", "Authorization": "Bearer made-up"}
    assert client.request(*route, content=too_large, headers=headers).status_code == 401


@pytest.mark.parametrize("route", GUARDED, ids=" ".join)
def test_what_has_ended_lets_nobody_in(store: LabelStore, client: TestClient, route: tuple[str, str]) -> None:
    store.add_account("Cleo", role="admin")
    signed_out = by_cookie(store, "Cleo")
    store.end_session(signed_out["Cookie"].partition("=")[2])
    old_link = by_link(store, "Cleo")
    cookie_before_new_link = by_cookie(store, "Cleo")
    store.new_link("Cleo")
    shut_out, shut_out_link = by_cookie(store, "Cleo"), by_link(store, "Cleo")
    store.deactivate("Cleo")
    fresh = store.start_session("Ada")
    for headers in (
        signed_out,
        old_link,
        cookie_before_new_link,
        shut_out,
        shut_out_link,
        {"Authorization": "Bearer "},
        {"Authorization": "Basic QWRhOng="},
        {"Authorization": f"Bearer {fresh.token}"},
        {"Cookie": f"prefloop_label_8765={fresh.token}", "X-CSRF-Token": fresh.csrf_token},
        # A wrong token is not overlooked because a cookie is right.
        {"Cookie": f"{COOKIE}={fresh.token}", "X-CSRF-Token": fresh.csrf_token, "Authorization": "Bearer x"},
    ):
        assert send(client, route, headers).status_code == 401


@pytest.mark.parametrize("route", WRITES, ids=" ".join)
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"X-CSRF-Token": ""}, "csrf"),
        ({"X-CSRF-Token": "0" * 64}, "csrf"),
        ({"X-CSRF-Token": "\u00e9"}, "csrf"),
        ({"Origin": "http://evil.example"}, "origin"),
        ({"Origin": "null"}, "origin"),
        ({"Origin": ""}, "origin"),
        ({"Origin": "http://testserver.evil.example"}, "origin"),
        ({"Origin": "http://testserver:81"}, "origin"),
        ({"Origin": "https://testserver"}, "origin"),
        ({"Origin": "http://TESTSERVER/"}, "origin"),
    ],
)
def test_a_forged_write_is_refused(
    store: LabelStore, client: TestClient, route: tuple[str, str], changed: dict[str, str], reason: str
) -> None:
    headers = [(key.encode(), value.encode("latin-1")) for key, value in (by_cookie(store, "Ada") | changed).items()]
    answer = client.request("POST", route[1], json=ROUTES[route][1], headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["reason"] == reason
    assert store.progress().num_labels == 0
    assert len(store.accounts()) == 2


def test_another_session_s_csrf_token_does_not_do(store: LabelStore, client: TestClient) -> None:
    headers = by_cookie(store, "Ada") | {"X-CSRF-Token": store.start_session("Ada").csrf_token}
    assert send(client, ("POST", "/api/next"), headers).json()["error"]["reason"] == "csrf"


def test_our_own_origin_may_write_and_a_program_needs_none(store: LabelStore, client: TestClient) -> None:
    assert send(client, ("POST", "/api/next"), by_cookie(store, "Ada") | {"Origin": ORIGIN}).status_code == 200
    foreign = by_link(store, "Ben") | {"Origin": "http://elsewhere.example"}
    assert send(client, ("POST", "/api/next"), foreign).status_code == 200


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "testserver.evil.example", "testserver:80:80", "testserver@evil.example", "", "127.0.0.1", "a b"],
)
def test_an_unknown_host_is_refused_everywhere(
    store: LabelStore, client: TestClient, route: tuple[str, str], host: str
) -> None:
    answer = send(client, route, by_link(store, "Ada") | {"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["reason"] == "host"


def test_hosts_are_known_with_any_port_or_with_theirs(store: LabelStore) -> None:
    client = TestClient(label_app(store, allowed_hosts={"label.example", "127.0.0.1:8765", "[::1]:8765"}))

    def status(host: str) -> int:
        return client.get("/health", headers={"Host": host}).status_code

    assert [status(host) for host in ("label.example", "LABEL.example:99", "127.0.0.1:8765", "[::1]:8765")] == [200] * 4
    assert [status(host) for host in ("127.0.0.1", "127.0.0.1:8766", "[::1]", "label.example.")] == [403] * 4
    with pytest.raises(SettingsError, match="no host name"):
        TestClient(label_app(store, allowed_hosts={"http://label.example"})).get("/health")


def test_two_host_headers_are_refused(client: TestClient) -> None:
    answer = client.get("/health", headers=[("Host", "testserver"), ("Host", "evil.example")])
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/", "/sign-in", "/api/project", "/static/label.js", "/nothing", "/health"])
def test_every_answer_carries_the_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
    assert "access-control-allow-origin" not in headers


def test_a_refused_host_gets_the_headers_too_and_csp_can_be_left_out(store: LabelStore, client: TestClient) -> None:
    refused = client.get("/", headers={"Host": "evil.example"})
    assert refused.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    open_client = TestClient(label_app(store, allowed_hosts={"testserver"}, csp=False))
    assert "content-security-policy" not in open_client.get("/health").headers


def test_the_personal_link_makes_a_session_and_leaves_the_address(store: LabelStore, client: TestClient) -> None:
    token = store.new_link("Ben")
    answer = client.get(f"/join/{token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert token not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert "Ben" in client.get("/").text


@pytest.mark.parametrize(("base", "public_url"), [("https://testserver", None), (ORIGIN, "https://testserver")])
def test_with_https_the_cookie_is_secure_and_the_origin_is_that_of_the_public_url(
    store: LabelStore, base: str, public_url: str | None
) -> None:
    client = TestClient(
        label_app(store, allowed_hosts={"testserver"}, public_url=public_url), base_url=base, follow_redirects=False
    )
    answer = client.get(f"/join/{store.new_link('Ben')}")
    assert "Secure" in answer.headers["set-cookie"]
    session = store.start_session("Ben")
    port = 443 if base.startswith("https") else 80
    headers = {"Cookie": f"prefloop_label_{port}={session.token}", "X-CSRF-Token": session.csrf_token}
    for origin, status in (("https://testserver", 200), ("http://testserver", 403)):
        answer = client.post("/api/next", json={"num": 1}, headers=headers | {"Origin": origin})
        assert answer.status_code == status


def test_signing_out_ends_the_session(store: LabelStore, client: TestClient) -> None:
    headers = by_cookie(store, "Ben")
    answer = send(client, ("POST", "/api/sign-out"), headers)
    assert 'prefloop_label_80="";' in answer.headers["set-cookie"]
    assert send(client, ("GET", "/api/progress"), headers).status_code == 401


def test_a_password_lets_in_and_sets_the_cookie(store: LabelStore, client: TestClient) -> None:
    store.set_password("Ben", "correct horse")
    refused = client.post("/api/sign-in", json={"name": "Ben", "password": "wrong horse"})
    assert (refused.status_code, refused.json()["error"]["reason"]) == (401, "wrong_password")
    answer = client.post("/api/sign-in", json={"name": " ben ", "password": "correct horse"})
    assert answer.json() == {"annotator": "Ben", "role": "annotator"}
    assert client.get("/api/progress").status_code == 200
    store.set_password("Ben", "a new password")
    assert client.get("/api/progress").status_code == 401


def test_passwords_cannot_be_tried_out(store: LabelStore, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def check(name: str, password: str) -> Any:
        tried.append(name)
        return next(one for one in store.accounts() if one.name == "Ben") if password == "right" else None

    monkeypatch.setattr(store, "check_password", check)

    def attempt(name: str, password: str = "wrong") -> Any:
        return client.post("/api/sign-in", json={"name": name, "password": password})

    assert [attempt(name).status_code for name in ("Ben", "ben", " BEN", "Ben", "Ben")] == [401] * 5
    refused = attempt("Ben", "right")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert len(tried) == 5
    # Another name still may, until the address as a whole has tried too often.
    assert attempt("Ada", "right").status_code == 200
    assert {attempt(f"name {number}").status_code for number in range(24)} == {401}
    assert attempt("one more").status_code == 429


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_another_site_cannot_sign_a_browser_in(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/api/sign-in", json={"name": "Ben", "password": "x"}, headers=headers)
    assert answer.json()["error"]["reason"] == "origin"


def test_attempts_count_again_after_a_minute_and_a_success_clears_them() -> None:
    now = [0.0]
    limit = AttemptLimit(2, seconds=60.0, clock=lambda: now[0])
    limit.admit("Ben")
    now[0] = 20.0
    limit.admit("Ben")
    with pytest.raises(RequestRefusedError) as refusal:
        limit.admit("Ben")
    assert refusal.value.headers == {"Retry-After": "40"}
    limit.admit("Ada")
    now[0] = 60.0
    limit.admit("Ben")
    with pytest.raises(RequestRefusedError):
        limit.admit("Ben")
    limit.forgive("Ben")
    limit.admit("Ben")
    for number in range(10_001):
        limit.admit(number)
    now[0] = 200.0
    limit.admit("Ben")
    assert len(limit.attempts) == 1


@pytest.mark.parametrize("url", ["label.example.org", "ftp://x", "https://", "https://x/path", "javascript:alert(1)"])
def test_a_public_url_is_an_origin(url: str) -> None:
    with pytest.raises(SettingsError, match="public URL"):
        origin_of(url)
    assert origin_of("https://Label.example.org:8443/") == "https://label.example.org:8443"


def test_a_link_shows_one_person_s_things_only(store: LabelStore, client: TestClient) -> None:
    say(store, "Ada")
    task = client.post("/api/next", json={"num": 1}, headers=by_link(store, "Ada")).json()["tasks"][0]
    label = LABEL | {"task_id": task["task_id"]}
    refused = client.post("/api/labels", json=label, headers=by_link(store, "Ben"))
    assert refused.json()["error"]["reason"] == "unknown_task"
    undo = client.post("/api/undo", json={"submission_id": "undo-number-1"}, headers=by_link(store, "Ben"))
    assert undo.json()["error"]["reason"] == "nothing_to_undo"
    assert store.own_progress("Ada").num_done == 1
