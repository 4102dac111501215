"""One model that writes one answer at a time, for callers who wait in a line.

Everything that touches the model or the tokenizer runs in one thread of its own, a token at a time, so that the server
can answer others meanwhile and stop an answer that nobody waits for any more.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from prefloop.contracts import Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.models.policy import Policy
from prefloop.randomness import derived_seed
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.streamed_text import StreamedText
from prefloop.web.completion_requests import ChatRequest, RequestError, SamplingRequest, TextRequest

MAX_ANSWERS = 64
"""Of one request: its prompts times its choices."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class AnswerPlan:
    """One answer to write: after which tokens, how it is drawn, and where it ends."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...]
    seed: int
    chat_format: ChatFormat


@dataclass(frozen=True)
class Piece:
    """A bit of answer `index`. `finish_reason` comes with the last one; `num_tokens` have been drawn so far.

    "stop" is the model's own end or a stop string, "length" the limit of tokens.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"] | None = None


class CompletionEngine:
    """`name` is what clients call the model; `max_new_tokens` bounds every answer, `max_waiting` the line."""

    def __init__(
        self, policy: Policy, chat_format: ChatFormat, *, name: str, max_new_tokens: int = 1024, max_waiting: int = 16
    ) -> None:
        self.name = name
        self.chat_format = chat_format
        self.raw_format = ChatFormat(policy.tokenizer, prompt_format="raw")
        self.generator = PolicyGenerator(policy, chat_format)
        self.vocabulary_size = int(policy.backbone.model.config.get_text_config().vocab_size)
        self.max_new_tokens = max_new_tokens
        self.max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefloop-decode")
        self._model_is_busy = asyncio.Lock()
        self._num_waiting = 0

    def close(self) -> None:
        """Ends the thread after the token that it is at."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def plans(self, request: ChatRequest | TextRequest) -> list[AnswerPlan]:
        """The answers that a request asks for: of each prompt `n`, one prompt after the other.

        Raises RequestError for what does not fit the model, and DataError for texts that it cannot read.
        """
        return await self._in_thread(lambda: self._plans(request))

    def check_line(self) -> None:
        """Raises RequestError (503) when the line is full already."""
        if self._model_is_busy.locked() and self._num_waiting >= self.max_waiting:
            raise RequestError(
                f"The model is busy and {self._num_waiting} requests wait for it already. Try again in a moment.",
                status=503,
                kind="server_error",
                code="overloaded",
                headers={"Retry-After": "2"},
            )

    async def write(self, plans: Sequence[AnswerPlan]) -> AsyncGenerator[Piece, None]:
        """Waits for its turn and gives the answers piece by piece, one answer after the other.

        The decode stops at the token it is at when the iterator is closed or its task is cancelled. Raises as
        `check_line`, and ModelError when the model fails.
        """
        async with self._turn():
            for index, plan in enumerate(plans):
                pieces = self._pieces(index, plan)
                try:
                    while (piece := await self._in_thread(lambda pieces=pieces: next(pieces, None))) is not None:
                        yield piece
                finally:
                    # In its thread, where the last token may still be under way. Nobody has to wait for it, and after
                    # `close` there is no thread to stop.
                    with suppress(RuntimeError):
                        self._thread.submit(pieces.close)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self.check_line()
        self._num_waiting += 1
        try:
            await self._model_is_busy.acquire()
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._model_is_busy.release()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _pieces(self, index: int, plan: AnswerPlan) -> Generator[Piece, None, None]:
        streamed = StreamedText(plan.chat_format, stop=plan.stop)
        random = torch.Generator().manual_seed(derived_seed(plan.seed, "served answer", index))
        num_tokens, ended = 0, False
        for token in self.generator.stream(plan.prompt_ids, sampling=plan.sampling, random=random):
            num_tokens += 1
            ended = token == plan.chat_format.eos_id
            yield Piece(index, streamed.push(token), num_tokens)
            if streamed.stopped:
                break
        rest = streamed.finish()
        yield Piece(index, rest, num_tokens, "stop" if ended or streamed.stopped else "length")

    def _plans(self, request: ChatRequest | TextRequest) -> list[AnswerPlan]:
        if request.model != self.name:
            raise RequestError(
                f"There is no model {request.model!r} here; this server has {self.name!r}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        if isinstance(request, ChatRequest):
            prompts, chat_format = [self._chat_prompt(request)], self.chat_format
        else:
            prompts, chat_format = [self._text_prompt(one) for one in request.prompt], self.raw_format
        if len(prompts) * request.n > MAX_ANSWERS:
            raise RequestError(
                f"{len(prompts)} prompts with n={request.n} ask for {len(prompts) * request.n} answers; "
                f"at most {MAX_ANSWERS} come at once.",
                param="n",
            )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        return [
            AnswerPlan(prompt, self._sampling(request, prompt), tuple(request.stop), seed, chat_format)
            for prompt in prompts
            for _ in range(request.n)
        ]

    def _chat_prompt(self, request: ChatRequest) -> tuple[int, ...]:
        messages = tuple(message.as_record() for message in request.messages)
        if messages[-1].role != "user":
            raise RequestError("The last message must be the user's: the model answers it.", param="messages")
        first, *others = messages
        if self.chat_format.prompt_format != "raw":
            return self.chat_format.prompt_ids(messages)
        if others:
            raise RequestError(
                "This model was trained to go on with plain text, not to hold a conversation: send one user message, "
                "or use /v1/completions.",
                param="messages",
            )
        return self.chat_format.prompt_ids(first.content)

    def _text_prompt(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self.raw_format.prompt_ids(prompt)
        if max(prompt) >= self.vocabulary_size:
            raise RequestError(
                f"The prompt has the token {max(prompt)}; the model knows 0 to {self.vocabulary_size - 1}.",
                param="prompt",
            )
        return tuple(prompt)

    def _sampling(self, request: SamplingRequest, prompt_ids: Sequence[int]) -> Sampling:
        asked = request.num_tokens()
        if asked is not None and asked > self.max_new_tokens:
            raise RequestError(
                f"{asked} tokens were asked for; this server writes at most {self.max_new_tokens}.", param="max_tokens"
            )
        limit = self.generator.context_length
        room = self.max_new_tokens if limit is None else limit - len(prompt_ids)
        if room < (asked or 1):
            raise RequestError(
                f"The model has room for {limit} tokens: the prompt has {len(prompt_ids)}, and {asked or 1} more were "
                "asked for. Shorten the prompt or ask for fewer.",
                code="context_length_exceeded",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        return Sampling(asked or min(room, self.max_new_tokens), request.temperature, top_p=request.top_p)
