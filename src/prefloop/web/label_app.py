"""The label server as an application: pages for people, and JSON for the page and for programs.

Every route finds out who is asking before it does anything; `label_security` has the rules. A label is answered after
it is stored for good, with the next tasks in the same answer.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from prefloop import __version__
from prefloop.collection.label_records import Account, Submission, Task
from prefloop.collection.store import LabelStore
from prefloop.collection.stored_rows import check_submission, check_text
from prefloop.contracts import Settings
from prefloop.errors import DataError, LabelRefusedError, PrefloopError
from prefloop.web import report_formats as formats
from prefloop.web.label_admin import add_admin_routes
from prefloop.web.label_security import (
    AttemptLimit,
    Gate,
    Person,
    RequestRefusedError,
    Shield,
    cookie_name,
    error_response,
    json_response,
    logger,
    parsed,
    places,
    read_body,
)

MAX_TASKS = 20
SIGN_IN_ATTEMPTS_PER_NAME = 5
SIGN_IN_ATTEMPTS_PER_ADDRESS = 30
PASSWORDS_CHECKED_AT_ONCE = 2
"""Each check takes 128 MiB and most of a second of a core."""
LABELS_AT_ONCE = 4
"""Only one thread runs Python and only one transaction gives out pairs: more of them only stand in each other's way."""

STATIC_TYPES = {".js": "text/javascript", ".css": "text/css"}


class NextBody(Settings):
    """How many tasks a client wants to hold."""

    num: int = Field(1, ge=1, le=MAX_TASKS)


class LabelBody(Submission):
    """A label, and how many tasks the client wants to hold after it."""

    num_next: int = Field(0, ge=0, le=MAX_TASKS)


class UndoBody(Settings):
    """The client's own id of the undoing, so that sending it twice takes back one label."""

    submission_id: str = Field(min_length=8, max_length=100)


class SignInBody(Settings):
    """A name and a password."""

    name: str = Field(min_length=1, max_length=200)
    password: str = Field(min_length=1, max_length=1000)


def label_app(
    store: LabelStore, *, allowed_hosts: Collection[str], public_url: str | None = None, csp: bool = True
) -> FastAPI:
    """The application over a store. `allowed_hosts` are the names (with `:port` or for any port) that it answers under.

    `public_url` is the address that people use when a proxy stands in front: its origin is then the one of the page,
    and with https the cookie is marked Secure. `csp=False` leaves out the content security policy, which only tests
    have a reason for. Raises SettingsError for a host or URL that is none.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Shield, allowed_hosts=allowed_hosts, csp=csp)
    gate = Gate(store, public_url=public_url)
    pages = _pages()
    _add_errors(app, pages)
    _add_static(app)
    _add_pages(app, gate, pages)
    _add_sign_in(app, gate)
    _add_labelling(app, gate)
    add_admin_routes(app, gate, pages)
    return app


def _pages() -> Environment:
    environment = Environment(
        loader=PackageLoader("prefloop.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (formats.number, formats.percent, formats.percent_interval, formats.number_interval, formats.words):
        environment.filters[function.__name__] = function
    environment.globals["version"] = __version__
    environment.globals["static"] = lambda name: f"/static/{name}?{_static_files()[name][1]}"
    return environment


@lru_cache(maxsize=1)
def _static_files() -> dict[str, tuple[bytes, str, str]]:
    """Content, digest and type of every file of the label pages, by name: what is not listed is not served."""
    files = {}
    for file in resources.files("prefloop.web").joinpath("static").iterdir():
        ending = file.name[file.name.rfind(".") :]
        if file.name.startswith("label") and ending in STATIC_TYPES:
            content = file.read_bytes()
            files[file.name] = (content, hashlib.sha256(content).hexdigest()[:16], STATIC_TYPES[ending])
    return files


def _add_errors(app: FastAPI, pages: Environment) -> None:
    """Errors are JSON for programs and a page for people, in both cases without a traceback."""

    def answer(request: Request, status: int, reason: str, message: str, headers: Any = None) -> Response:
        path = request.scope["path"]
        if request.method == "GET" and not path.startswith(("/api/", "/static/")) and path != "/health":
            return HTMLResponse(pages.get_template("label_message.html").render(message=message), status, headers)
        return error_response(status, reason, message, headers)

    @app.exception_handler(RequestRefusedError)
    def refused(request: Request, problem: RequestRefusedError) -> Response:
        return answer(request, problem.status, problem.reason, str(problem), problem.headers)

    @app.exception_handler(LabelRefusedError)
    def label_refused(request: Request, problem: LabelRefusedError) -> Response:
        return answer(request, 409, problem.reason, str(problem))

    @app.exception_handler(PrefloopError)
    def store_failed(request: Request, problem: PrefloopError) -> Response:
        # What clients send is checked before the store sees it: this is the disk or the database, and may pass.
        logger.error("the store failed: %s in %s", type(problem).__name__, places(problem))
        message = "The server cannot reach its store at the moment. Try again in a while."
        return answer(request, 503, "store", message, {"Retry-After": "5"})

    @app.exception_handler(HTTPException)
    def other(request: Request, problem: HTTPException) -> Response:
        reason, message = {
            404: ("not_found", "There is nothing at this address."),
            405: ("method", "This address is not made for that method."),
        }.get(problem.status_code, ("refused", "The request cannot be answered."))
        return answer(request, problem.status_code, reason, message, problem.headers)


def _add_static(app: FastAPI) -> None:
    @app.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        if name not in _static_files():
            raise HTTPException(404)
        content, digest, media_type = _static_files()[name]
        headers = {"Cache-Control": "no-cache", "ETag": f'"{digest}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    @app.get("/health")
    async def health() -> Response:
        return json_response({"ok": True})


def _add_pages(app: FastAPI, gate: Gate, pages: Environment) -> None:
    """The page itself, the ways in, and the personal link."""

    @app.get("/")
    def page(person: Annotated[Person | None, Depends(gate.visitor)]) -> Response:
        if person is None:
            return RedirectResponse("/sign-in", 303)
        settings = gate.store.settings
        return HTMLResponse(pages.get_template("label.html").render(settings=settings, account=person.account))

    @app.get("/sign-in")
    def sign_in_page() -> Response:
        return HTMLResponse(pages.get_template("label_sign_in.html").render(settings=gate.store.settings))

    @app.get("/join/{token}")
    def join(token: str, request: Request) -> Response:
        account = gate.store.account_of_link(token)
        if account is None:
            raise RequestRefusedError(
                404, "unknown_link", "This personal link is not valid, or no longer. Ask for a new one."
            )
        return _with_session(RedirectResponse("/", 303), gate, account, request)


def _add_sign_in(app: FastAPI, gate: Gate) -> None:
    per_name = AttemptLimit(SIGN_IN_ATTEMPTS_PER_NAME)
    per_address = AttemptLimit(SIGN_IN_ATTEMPTS_PER_ADDRESS)
    hashing = CapacityLimiter(PASSWORDS_CHECKED_AT_ONCE)

    @app.post("/api/sign-in")
    async def sign_in(request: Request, body: Annotated[bytes, Depends(read_body)]) -> Response:
        gate.check_origin(request)
        asked = parsed(SignInBody, body)
        address = request.client.host if request.client else ""
        key = (asked.name.strip().casefold(), address)
        per_name.admit(key)
        per_address.admit(address)
        account = await to_thread.run_sync(gate.store.check_password, asked.name, asked.password, limiter=hashing)
        if account is None:
            raise RequestRefusedError(401, "wrong_password", "The name and the password do not go together.")
        per_name.forgive(key)
        answer = json_response({"annotator": account.name, "role": account.role})
        return await to_thread.run_sync(_with_session, answer, gate, account, request)

    @app.post("/api/sign-out")
    def sign_out(person: Annotated[Person, Depends(gate.annotator)], request: Request) -> Response:
        answer = json_response({"ok": True})
        if person.session_token is not None:
            gate.store.end_session(person.session_token)
            answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict", secure=gate.is_https(request))
        return answer


def _with_session(answer: Response, gate: Gate, account: Account, request: Request) -> Response:
    """The answer, with the cookie of a new session."""
    session = gate.store.start_session(account.name)
    answer.set_cookie(
        cookie_name(request),
        session.token,
        max_age=7 * 24 * 3600,
        httponly=True,
        samesite="strict",
        secure=gate.is_https(request),
    )
    return answer


def _add_labelling(app: FastAPI, gate: Gate) -> None:
    store = gate.store
    turns = CapacityLimiter(LABELS_AT_ONCE)

    async def who_asks(request: Request) -> Person:
        return await to_thread.run_sync(gate.annotator, request, limiter=turns)

    annotator, sent = Depends(who_asks), Depends(read_body)

    async def at_store(person: Person, work: Callable[[], dict[str, Any]]) -> Response:
        """Does the work for the person, and answers with what it gives and how far the person is."""

        def whole() -> Response:
            return json_response({**work(), "progress": asdict(store.own_progress(person.name))})

        return await to_thread.run_sync(whole, limiter=turns)

    # Browsers keep what is not sent yet under it: two projects served in turn at one address must not mix.
    place = store.location if "://" in store.location else str(Path(store.location).resolve())
    project_id = hashlib.sha256(place.encode()).hexdigest()[:16]

    @app.get("/api/project")
    def project(person: Annotated[Person, annotator]) -> Response:
        settings = store.settings
        return json_response(
            {
                "project_id": project_id,
                "name": settings.name,
                "guidelines": settings.guidelines,
                "annotators_per_pair": settings.annotators_per_pair,
                "annotator": person.name,
                "role": person.account.role,
                "csrf_token": person.csrf_token,
            }
        )

    @app.post("/api/next")
    async def next_tasks(person: Annotated[Person, annotator], body: Annotated[bytes, sent]) -> Response:
        def work() -> dict[str, Any]:
            return {"tasks": _for_page(store.next_tasks(person.name, num=parsed(NextBody, body).num))}

        return await at_store(person, work)

    @app.post("/api/labels")
    async def submit(person: Annotated[Person, annotator], body: Annotated[bytes, sent]) -> Response:
        def work() -> dict[str, Any]:
            asked = parsed(LabelBody, body)
            # What was checked a line above needs no second check.
            submission = Submission.model_construct(**asked.model_dump(exclude={"num_next"}))
            with _content_checked():
                check_submission(submission)
            receipt, tasks = store.submit_and_next(person.name, submission, num_next=asked.num_next)
            return {"receipt": asdict(receipt), "tasks": _for_page(tasks)}

        return await at_store(person, work)

    @app.post("/api/undo")
    async def undo(person: Annotated[Person, annotator], body: Annotated[bytes, sent]) -> Response:
        def work() -> dict[str, Any]:
            submission_id = parsed(UndoBody, body).submission_id
            with _content_checked():
                check_text(submission_id, "The submission_id of an undo")
            undone = store.undo(person.name, submission_id)
            previous = {"choice": undone.choice, "strength": undone.strength, "rationale": undone.rationale}
            return {"receipt": asdict(undone.receipt), "task": undone.task.for_page(), "previous": previous}

        return await at_store(person, work)

    @app.get("/api/progress")
    async def progress(person: Annotated[Person, annotator]) -> Response:
        return await at_store(person, dict)


@contextmanager
def _content_checked() -> Iterator[None]:
    """What the store could not keep is the client's to mend; any other error of the store is not."""
    try:
        yield
    except DataError as problem:
        raise RequestRefusedError(422, "malformed", str(problem)) from None


def _for_page(tasks: list[Task]) -> list[dict[str, Any]]:
    return [task.for_page() for task in tasks]
