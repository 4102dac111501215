"""Who may do what at the label server: hosts, origins, sessions, roles, sizes, rates, and the headers of every answer.

A page on this machine's loopback address is no private place: any site that the browser has open can send requests to
it. So every request must name a known host, a write by cookie must carry the session's token and our own origin, and a
program shows its link token instead of a cookie.
"""

import asyncio
import hmac
import json
import logging
import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefloop.collection.label_records import Account
from prefloop.collection.store import LabelStore
from prefloop.errors import PrefloopError, SettingsError

MAX_BODY_BYTES = 2**20
BODY_SECONDS = 30.0
"""A body that takes longer to arrive is given up, so that slow senders hold no place for ever."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
FIXED_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HOST_PATTERN = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")

logger = logging.getLogger("prefloop.label")

AnyBody = TypeVar("AnyBody", bound=BaseModel)


class RequestRefusedError(PrefloopError):
    """A request that is not answered as asked: the HTTP status, a word for programs and a sentence for people."""

    def __init__(self, status: int, reason: str, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = headers


def error_response(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form of every error that a program sees."""
    return JSONResponse({"error": {"reason": reason, "message": message}}, status_code=status, headers=headers)


class Shield:
    """Middleware around the whole application: known hosts only, headers on every answer, no traceback to a client."""

    logger = logger

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str], csp: bool) -> None:
        self.app = app
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self.headers = FIXED_HEADERS | ({"Content-Security-Policy": CONTENT_SECURITY_POLICY} if csp else {})
        for host in self.allowed_hosts:
            if not HOST_PATTERN.fullmatch(host):
                raise SettingsError(
                    f"The allowed host {host!r} is no host name; give it as label.example.org or with :port."
                )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as problem:
            self.logger.error("%s in %s", type(problem).__name__, places(problem))
            if not started:
                await self._failure()(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """What a request gets that is not let in; None for one that is."""
        if self._host_is_allowed(scope):
            return None
        return error_response(403, "host", "This server does not answer under that host name.")

    def _failure(self) -> Response:
        """What a request gets that made the server fail."""
        message = "Something went wrong in the server. Try again; if it goes on, tell who runs it."
        return error_response(500, "internal", message)

    def _host_is_allowed(self, scope: Scope) -> bool:
        hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        match = HOST_PATTERN.fullmatch(hosts[0]) if len(hosts) == 1 else None
        return match is not None and (hosts[0] in self.allowed_hosts or match[1] in self.allowed_hosts)


def places(problem: BaseException) -> str:
    """Where an error happened, for the log. What it says stays out: it may quote what people wrote."""
    frames = traceback.extract_tb(problem.__traceback__)
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:])


@dataclass(frozen=True)
class Person:
    """Whoever sent a request. Both tokens are None for a program that showed a link token."""

    account: Account
    session_token: str | None
    csrf_token: str | None

    @property
    def name(self) -> str:
        return self.account.name


class Gate:
    """Finds out who sends a request, and refuses what that person may not do.

    `annotator` and `admin` are dependencies of routes; each also checks writes by cookie, so no route can forget to.
    """

    def __init__(self, store: LabelStore, *, public_url: str | None) -> None:
        self.store = store
        self.public_origin = None if public_url is None else origin_of(public_url)

    def visitor(self, request: Request) -> Person | None:
        """The person, or None for somebody unknown. A link token that is shown and wrong is never overlooked."""
        authorization = request.headers.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            account = self.store.account_of_link(token.strip()) if scheme.lower() == "bearer" else None
            if account is None:
                raise RequestRefusedError(401, "unknown_token", "The token in the Authorization header is not valid.")
            return Person(account, None, None)
        token = request.cookies.get(cookie_name(request))
        session = self.store.session(token) if token else None
        return None if session is None else Person(session.account, session.token, session.csrf_token)

    def annotator(self, request: Request) -> Person:
        """Anybody who is signed in."""
        person = self.visitor(request)
        if person is None:
            raise RequestRefusedError(
                401, "signed_out", "Nobody is signed in. Open your personal link again, or sign in with your password."
            )
        if request.method not in ("GET", "HEAD") and person.csrf_token is not None:
            self.check_origin(request)
            shown = request.headers.get("x-csrf-token", "")
            if not hmac.compare_digest(shown.encode(), person.csrf_token.encode()):
                raise RequestRefusedError(
                    403, "csrf", "The X-CSRF-Token header is not that of the session; GET /api/project gives it."
                )
        return person

    def admin(self, request: Request) -> Person:
        """Somebody who is signed in and has the role."""
        person = self.annotator(request)
        if person.account.role != "admin":
            raise RequestRefusedError(403, "admins_only", f"Only admins may see this; {person.name} is an annotator.")
        return person

    def check_origin(self, request: Request) -> None:
        """Refuses a request that another site's page sent. Programs send no Origin; browsers do with every POST."""
        origin = request.headers.get("origin")
        expected = self.public_origin or f"{request.scope['scheme']}://{request.headers['host'].lower()}"
        if origin is not None and origin != expected:
            raise RequestRefusedError(403, "origin", "This request comes from a page of another site.")

    def personal_link(self, token: str, request: Request) -> str:
        """The address that signs in whoever opens it."""
        origin = self.public_origin or f"{request.scope['scheme']}://{request.headers['host']}"
        return f"{origin}/join/{token}"

    def is_https(self, request: Request) -> bool:
        """Whether the browser speaks https with us, or with the proxy in front of us."""
        return (self.public_origin or f"{request.scope['scheme']}:").startswith("https:")


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL as browsers write them in Origin. Raises SettingsError for anything else."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise SettingsError(f"The public URL {url!r} must have the form https://label.example.org, without a path.")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def cookie_name(request: Request) -> str:
    """Browsers share cookies between the ports of a host, so the name tells servers of one machine apart."""
    server = request.scope.get("server")
    return f"prefloop_label_{server[1] if server else 0}"


async def read_body(request: Request) -> bytes:
    """The body of a JSON request, at most `MAX_BODY_BYTES` long."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestRefusedError(415, "not_json", "Send the body as JSON, with Content-Type: application/json.")
    parts, num_bytes = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes > MAX_BODY_BYTES:
                    raise RequestRefusedError(
                        413, "too_large", "The body is larger than 1 MiB.", headers={"Connection": "close"}
                    )
                parts.append(part)
    except TimeoutError:
        raise RequestRefusedError(
            408, "too_slow", f"The body took more than {BODY_SECONDS:.0f} s.", headers={"Connection": "close"}
        ) from None
    return b"".join(parts)


def parsed(model: type[AnyBody], body: bytes) -> AnyBody:
    """The body as a `model`; all that is wrong with it in one refusal, without quoting what people wrote."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as problem:
        told = [_told(error) for error in problem.errors(include_url=False, include_input=False, include_context=False)]
        raise RequestRefusedError(422, "malformed", " ".join(told[:10])) from None


def _told(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "The body"
    if error["type"] == "extra_forbidden":
        return f"{place} is not a known field."
    if error["type"] == "missing":
        return f"{place} is missing."
    if error["type"] == "json_invalid":
        return "The body is not valid JSON."
    said = error["msg"].removeprefix("Value error, ")
    rest = said.removeprefix("Input should ")
    return f"{place} should {rest}." if rest != said else f"{place}: {said}."


class AttemptLimit:
    """So many attempts in a stretch of seconds, for each key apart."""

    def __init__(
        self, num_attempts: int, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_attempts = num_attempts
        self.seconds = seconds
        self.clock = clock
        self.attempts: dict[Any, deque[float]] = {}

    def admit(self, key: Any) -> None:
        """Counts an attempt, before its outcome is known: otherwise many could run at once.

        Raises RequestRefusedError (429, with Retry-After) when there were too many.
        """
        now = self.clock()
        if len(self.attempts) > 10_000:
            self._forget(now)
        times = self.attempts.setdefault(key, deque())
        while times and times[0] <= now - self.seconds:
            times.popleft()
        if len(times) >= self.num_attempts:
            seconds = max(1, round(times[0] + self.seconds - now))
            raise RequestRefusedError(
                429,
                "too_many_attempts",
                f"Too many attempts to sign in. Try again in {seconds} s.",
                headers={"Retry-After": str(seconds)},
            )
        times.append(now)

    def forgive(self, key: Any) -> None:
        """A success: earlier failures of the key no longer count."""
        self.attempts.pop(key, None)

    def _forget(self, now: float) -> None:
        self.attempts = {key: times for key, times in self.attempts.items() if times and times[-1] > now - self.seconds}


def json_response(content: Any) -> Response:
    """Content as JSON. Not starlette's own: this one keeps non-ASCII text escaped, so that no text can break it."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(body, media_type="application/json")
