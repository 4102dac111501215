"""A model behind the OpenAI API: /v1/models, /v1/chat/completions and /v1/completions, whole or as a stream.

The forms of requests, answers, streams and errors are those of the API, so that its clients work unchanged. Only known
hosts are answered, and with a key only who shows it. When a client goes away, the decode of its answer stops.
"""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefloop import __version__
from prefloop.errors import PrefloopError
from prefloop.web.completion_engine import AnswerPlan, CompletionEngine, Piece
from prefloop.web.completion_requests import ChatRequest, RequestError, TextRequest, read_request
from prefloop.web.label_security import RequestRefusedError, Shield, json_response, places, read_body

logger = logging.getLogger("prefloop.serve")

_T = TypeVar("_T")
FINGERPRINT = f"prefloop-{__version__}"


def completion_app(engine: CompletionEngine, *, allowed_hosts: Collection[str], api_key: str | None = None) -> FastAPI:
    """The application over a model. `allowed_hosts` are the names (with `:port` or for any port) it answers under.

    With an `api_key` everything but /health needs it, as `Authorization: Bearer KEY`. Raises SettingsError for a host
    that is none.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Doorkeeper, allowed_hosts=allowed_hosts, api_key=api_key)
    _add_errors(app)
    _add_models(app, engine)
    _add_completions(app, engine)
    return app


def error_response(problem: RequestError) -> Response:
    """The error in the API's form."""
    answer = json_response(problem.body())
    answer.status_code = problem.status
    answer.headers.update(problem.headers or {})
    return answer


def _internal_error() -> RequestError:
    return RequestError("Something went wrong in the server.", status=500, kind="server_error", code="internal_error")


class Doorkeeper(Shield):
    """The label server's rules for hosts and headers, with the key asked for and errors in the API's form."""

    logger = logger

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str], api_key: str | None) -> None:
        super().__init__(app, allowed_hosts=allowed_hosts, csp=True)
        self.api_key = api_key

    def _refusal(self, scope: Scope) -> Response | None:
        problem = self._problem(scope)
        return None if problem is None else error_response(problem)

    def _failure(self) -> Response:
        return error_response(_internal_error())

    def _problem(self, scope: Scope) -> RequestError | None:
        if not self._host_is_allowed(scope):
            return RequestError(
                "This server does not answer under that host name.", status=403, code="host_not_allowed"
            )
        if self.api_key is None or scope["path"] == "/health":
            return None
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self.api_key.encode()):
            return None
        return RequestError(
            "The API key is missing or wrong: send it as Authorization: Bearer KEY.",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    def refused(_: Request, problem: RequestError) -> Response:
        return error_response(problem)

    @app.exception_handler(RequestRefusedError)
    def body_refused(_: Request, problem: RequestRefusedError) -> Response:
        return error_response(
            RequestError(str(problem), status=problem.status, code=problem.reason, headers=problem.headers)
        )

    @app.exception_handler(PrefloopError)
    def unreadable(_: Request, problem: PrefloopError) -> Response:
        """What the chat format or the model says of a text that it cannot take."""
        return error_response(RequestError(str(problem), code="unusable_prompt"))

    @app.exception_handler(HTTPException)
    def other(request: Request, problem: HTTPException) -> Response:
        path = request.scope["path"]
        code, message = {
            404: (
                "not_found",
                f"There is nothing at {path}; this server has /v1/models, /v1/chat/completions and /v1/completions.",
            ),
            405: ("method", f"{path} is not made for {request.method}."),
        }.get(problem.status_code, ("refused", "The request cannot be answered."))
        headers = dict(problem.headers or {})
        return error_response(RequestError(message, status=problem.status_code, code=code, headers=headers))


def _add_models(app: FastAPI, engine: CompletionEngine) -> None:
    model = {"id": engine.name, "object": "model", "created": int(time.time()), "owned_by": "prefloop"}

    @app.get("/health")
    async def health() -> Response:
        return json_response({"ok": True})

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [model]})

    # A model's name may hold slashes, as names on the Hub do.
    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != engine.name:
            raise RequestError(f"There is no model {name!r} here.", status=404, code="model_not_found", param="model")
        return json_response(model)


def _add_completions(app: FastAPI, engine: CompletionEngine) -> None:
    sent = Depends(read_body)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: Annotated[bytes, sent]) -> Response:
        return await answer(request, read_request(ChatRequest, body))

    @app.post("/v1/completions")
    async def text(request: Request, body: Annotated[bytes, sent]) -> Response:
        return await answer(request, read_request(TextRequest, body))

    async def answer(request: Request, asked: ChatRequest | TextRequest) -> Response:
        engine.check_line()
        plans = await engine.plans(asked)
        form = (ChatForm if isinstance(asked, ChatRequest) else TextForm)(engine.name, plans, num_per_prompt=asked.n)
        if asked.stream:
            return EventStream(form.events(engine, include_usage=asked.stream_options.include_usage))
        return json_response(await unless_gone(request.receive, form.whole(engine)))


class ChatForm:
    """Answers in the form of /v1/chat/completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    part_object = "chat.completion.chunk"

    def __init__(self, model: str, plans: Sequence[AnswerPlan], *, num_per_prompt: int) -> None:
        self.plans = plans
        # A prompt is read once, however many answers it gets.
        self.num_prompt_tokens = sum(len(plan.prompt_ids) for plan in plans[::num_per_prompt])
        self.num_drawn = [0] * len(plans)
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.head["system_fingerprint"] = FINGERPRINT

    def whole_choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> list[dict[str, Any]]:
        """What comes before the first piece of an answer."""
        return [{"delta": {"role": "assistant", "content": "", "refusal": None}}]

    def part_choice(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def usage(self) -> dict[str, int]:
        """Tokens read and drawn. An end token is drawn, too, and so is what stands behind a stop string."""
        drawn = sum(self.num_drawn)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self.num_prompt_tokens + drawn,
        }

    async def whole(self, engine: CompletionEngine) -> dict[str, Any]:
        """The answer to a request without a stream."""
        texts, reasons = [""] * len(self.plans), [""] * len(self.plans)
        async with aclosing(engine.write(self.plans)) as pieces:
            async for piece in pieces:
                texts[piece.index] += piece.text
                self._count(piece)
                reasons[piece.index] = piece.finish_reason or ""
        choices = [
            {"index": index, **self.whole_choice(text), "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self.head, "object": self.whole_object, "choices": choices, "usage": self.usage()}

    async def events(self, engine: CompletionEngine, *, include_usage: bool) -> AsyncGenerator[str, None]:
        """The parts of a stream, each as JSON, with the closing mark."""
        begun: set[int] = set()
        async with aclosing(engine.write(self.plans)) as pieces:
            async for piece in pieces:
                self._count(piece)
                for choice in self._parts(piece, is_first=piece.index not in begun):
                    yield self._part([choice], None, include_usage=include_usage)
                begun.add(piece.index)
        if include_usage:
            yield self._part([], self.usage(), include_usage=True)
        yield "[DONE]"

    def _parts(self, piece: Piece, *, is_first: bool) -> Iterator[dict[str, Any]]:
        parts: list[tuple[dict[str, Any], str | None]] = []
        if is_first:
            parts += [(one, None) for one in self.opening()]
        if piece.text:
            parts.append((self.part_choice(piece.text), None))
        if piece.finish_reason:
            parts.append((self.part_choice(""), piece.finish_reason))
        for content, reason in parts:
            yield {"index": piece.index, **content, "logprobs": None, "finish_reason": reason}

    def _part(self, choices: list[Any], usage: dict[str, int] | None, *, include_usage: bool) -> str:
        part = {**self.head, "object": self.part_object, "choices": choices}
        return json.dumps(part | ({"usage": usage} if include_usage else {}), separators=(",", ":"))

    def _count(self, piece: Piece) -> None:
        self.num_drawn[piece.index] = piece.num_tokens


class TextForm(ChatForm):
    """Answers in the form of /v1/completions."""

    prefix = "cmpl"
    whole_object = part_object = "text_completion"

    def whole_choice(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def opening(self) -> list[dict[str, Any]]:
        return []

    def part_choice(self, text: str) -> dict[str, Any]:
        return {"text": text}


class EventStream(Response):
    """Server-sent events, written as they come; they stop when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await unless_gone(receive, self._write(send))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        try:
            async with aclosing(self.events) as events:
                async for event in events:
                    await send(_event(event))
        except RequestError as problem:
            await send(_event(json.dumps(problem.body())))
        except Exception as problem:
            logger.error("%s in %s", type(problem).__name__, places(problem))
            # The status is sent already: clients of the API look for errors among the events.
            await send(_event(json.dumps(_internal_error().body())))


def _event(data: str) -> Message:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work returns; raises ClientDisconnect, with the work cancelled, when the client goes away before."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
