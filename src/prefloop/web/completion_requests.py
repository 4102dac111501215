"""What clients of the OpenAI API may ask of `prefloop serve`, checked before a token is drawn.

What would change the answer and cannot be done here is refused; what says nothing about the answer (who the user is,
where it is billed) is taken and not read. A value of null is the same as none.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError

from prefloop.contracts import Settings
from prefloop.errors import PrefloopError
from prefloop.records import Message

MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
DEFAULT_MAX_TOKENS = 16
"""Of /v1/completions, as its specification says; a chat answer is as long as the server lets it be."""
SMALLEST_TEMPERATURE = 1e-6
"""Below it logits overflow; 0 itself takes the likeliest token."""

NOT_READ = frozenset(
    {"metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention"}
    | {"safety_identifier", "service_tier", "store", "user"}
)
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Known parameters that are not supported, each with the values that ask for nothing."""

SUBJECT = re.compile(r"^(Input|String|List) should")
"""How the checks speak of a value that they cannot name."""

AnyRequest = TypeVar("AnyRequest", bound="SamplingRequest")


class RequestError(PrefloopError):
    """A request that is not answered as asked, in the API's own terms."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str = "invalid_value",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The one form of every error that a client sees."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def _stop_strings(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text_of_parts(value: Any) -> Any:
    """Content may come as a list of parts; those that are text make one text."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("has a part that is no text, and this model reads text alone")
        texts.append(part["text"])
    return "".join(texts)


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """One text, several, the tokens of one, or of several: always as a list."""
    several: list[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if several and all(isinstance(one, str) for one in several):
        return [_whole_characters(one) for one in several]
    several = [several] if several and not isinstance(several[0], list) else several
    if several and all(isinstance(one, list) and one and all(map(_is_token, one)) for one in several):
        return several
    raise ValueError("must be a text, a list of texts, a list of tokens, or a list of lists of tokens, none empty")


def _whole_characters(text: str) -> str:
    """The text itself. Half a character (a lone surrogate) has no bytes, and so no tokens."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a character (a lone surrogate)")
    return text


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0


def _no_tiny_temperature(value: Any) -> Any:
    if isinstance(value, int | float) and 0 < value < SMALLEST_TEMPERATURE:
        raise ValueError(f"is {value}; give 0 to always take the likeliest token, or at least {SMALLEST_TEMPERATURE:g}")
    return value


StopString = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_whole_characters)]


class StreamOptions(Settings):
    """How a stream is written."""

    include_usage: bool = False
    """Whether the last part counts the tokens."""
    include_obfuscation: bool = False
    """Taken and not read: nothing is added to a stream."""


class SamplingRequest(Settings):
    """What both kinds of completion share."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: Annotated[float, BeforeValidator(_no_tiny_temperature)] = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[StopString], BeforeValidator(_stop_strings)] = Field(default=[], max_length=MAX_STOP_STRINGS)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def num_tokens(self) -> int | None:
        """The most tokens of an answer, as asked for; None leaves it to the server."""
        return self.max_tokens


class ChatMessage(Settings):
    """One turn. `developer` is the system's newer name."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of_parts), AfterValidator(_whole_characters)]
    name: str = ""
    """Taken and not read: chat templates have no place for it."""

    def as_record(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


class ChatRequest(SamplingRequest):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of max_tokens."""

    def num_tokens(self) -> int | None:
        """See `SamplingRequest`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TextRequest(SamplingRequest):
    """The body of /v1/completions: texts to go on with, or their tokens."""

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts)]
    """All as texts, or all as tokens."""

    def num_tokens(self) -> int | None:
        """See `SamplingRequest`."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


def read_request(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """The body as a request of this kind. Raises RequestError (400) that names what is wrong with it."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError("The body must be a JSON object.", code="invalid_json")
    try:
        return kind.model_validate(_what_is_asked(content), strict=True)
    except ValidationError as problem:
        raise _refusal(problem) from None


def _what_is_asked(content: dict[str, Any]) -> dict[str, Any]:
    """The body without nulls and without what asks for nothing. Raises RequestError for what is not supported."""
    asked: dict[str, Any] = {}
    for name, value in content.items():
        if value is None or name in NOT_READ:
            continue
        if name in NOTHING_ASKED:
            # By type too: logprobs may be false, but 0 asks for the log-probabilities of the drawn tokens.
            if not any(value == one and type(value) is type(one) for one in NOTHING_ASKED[name]):
                raise RequestError(
                    f"{name} is not supported by this server: leave it out.", code="unsupported_parameter", param=name
                )
        elif name == "messages" and isinstance(value, list):
            asked[name] = [_without_nulls(one) for one in value]
        elif name == "stream_options":
            asked[name] = _without_nulls(value)
        else:
            asked[name] = value
    return asked


def _without_nulls(value: Any) -> Any:
    """Clients send back an answer with all its fields, most of them empty: tool calls, refusal, annotations."""
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if inner is not None and inner != []}


def _refusal(problem: ValidationError) -> RequestError:
    errors = problem.errors(include_url=False, include_input=False, include_context=False)
    told = list(dict.fromkeys(_told(error) for error in errors))
    unknown = errors[0]["type"] == "extra_forbidden"
    return RequestError(
        " ".join(told[:5]),
        code="unknown_parameter" if unknown else "invalid_value",
        param=_place(errors[0]) or None,
    )


def _place(error: Any) -> str:
    """Where in the body, without the names that the choices of a union carry."""
    return ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part.isidentifier())


def _told(error: Any) -> str:
    place = _place(error)
    if error["type"] == "extra_forbidden":
        return f"{place} is not a known parameter."
    if error["type"] == "missing":
        return f"{place} is missing."
    said = error["msg"].removeprefix("Value error, ")
    return f"{place} {SUBJECT.sub('should', said)}."
