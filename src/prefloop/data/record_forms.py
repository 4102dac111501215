"""From rows to records: which columns hold what, in the names that published data sets use."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prefloop.data.row_files import Row, json_type
from prefloop.errors import DataError
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, Prompt, Role, TextExample

Kind = Literal["text", "demonstrations", "pairs", "labelled", "prompts"]
Record = TextExample | Demonstration | PreferencePair | LabelledText | Prompt

EMPTY_TEXT = "empty text"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"
EQUAL_PAIR = "chosen equals rejected"
DUPLICATE = "duplicate row"
NO_SHARED_PROMPT = "no shared prompt"
NO_ANSWER = "does not end with the assistant"
CUT_ANSWER = "chosen answer was cut"
OTHER_LABEL = "label is neither 0 nor 1"

_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


class RowProblem(Exception):  # noqa: N818 - collected and raised as one DataError
    """The row is malformed: the whole reading fails."""


class RowDropped(Exception):  # noqa: N818 - counted, not a failure
    """The row is well formed and useless: it is left out and counted under this reason."""


@dataclass(frozen=True)
class Form:
    """Columns that make a record of one kind. Optional columns are read where they are present."""

    columns: tuple[str, ...]
    make: Callable[[Row], Record]
    optional: tuple[str, ...] = ()


def form_of(kind: Kind, found: Sequence[str], columns: Mapping[str, str], *, source: str) -> Form:
    """The first form of the kind whose columns are all there, after the mapping from our names to the data's.

    Raises DataError that names the columns found, the columns wanted and the mapping to write.
    """
    forms = FORMS[kind]
    known = {name for form in forms for name in (*form.columns, *form.optional)}
    for ours, theirs in columns.items():
        if ours not in known:
            raise DataError(f"columns maps {ours!r}, which {kind} do not have; they have {', '.join(sorted(known))}.")
        if theirs not in found:
            raise DataError(f"{source} has no column {theirs!r} (columns: {ours}={theirs}); it has {', '.join(found)}.")
    available = {name for name in found if name not in columns.values()} | set(columns)
    for form in forms:
        if available.issuperset(form.columns):
            return form
    wanted = "; or ".join(" + ".join(form.columns) for form in forms)
    raise DataError(
        f"{source} has the columns {', '.join(found)}; {kind} need {wanted}. Map one with "
        f'columns={{"{forms[0].columns[0]}": "NAME"}}, where NAME is the column in the data.'
    )


def with_our_names(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the mapped columns under our names."""
    if not columns:
        return row
    values = {name: value for name, value in row.values.items() if name not in columns.values()}
    values.update({ours: row.values[theirs] for ours, theirs in columns.items() if theirs in row.values})
    return Row(row.place, values, row.typed)


# --- values ---------------------------------------------------------------------------------------------------------


def _value(row: Row, column: str) -> Any:
    if column not in row.values:
        raise RowProblem(f"the column {column!r} is missing (found: {', '.join(row.values)})")
    return row.values[column]


def _checked(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(f"{name} is {json_type(value)}; it must be a string")
    if "\x00" in value:
        raise RowProblem(f"{name} holds a NUL character at position {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(f"{name} holds half a surrogate pair at position {error.start}") from error
    return value


def _text(row: Row, column: str, *, empty: str) -> str:
    text = _checked(_value(row, column), column)
    if not text.strip():
        raise RowDropped(empty)
    return text


def _number(row: Row, column: str) -> float:
    value = _value(row, column)
    if not row.typed:
        try:
            value = float(value)
        except ValueError:
            raise RowProblem(f"{column} is {value!r}; it must be a number") from None
    if not isinstance(value, int | float):  # true and false count as 1 and 0
        raise RowProblem(f"{column} is {json_type(value)}; it must be a number")
    if value != value or value in (float("inf"), float("-inf")):
        raise RowProblem(f"{column} is {value}; it must be a finite number")
    return float(value)


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RowProblem(f"{name} is {json_type(value)}; it must be a list of messages")
    messages: list[Message] = []
    for number, item in enumerate(value):
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise RowProblem(f"{name}[{number}] must be an object with role and content")
        if item["role"] not in get_args(Role):
            raise RowProblem(f"{name}[{number}] has the role {item['role']!r}; allowed: {', '.join(get_args(Role))}")
        messages.append(Message(item["role"], _checked(item["content"], f"{name}[{number}].content")))
    return tuple(messages)


def _prompt_of(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    if not messages or not messages[-1].content.strip():
        raise RowDropped(EMPTY_PROMPT)
    if messages[-1].role == "assistant":
        raise RowProblem(f"{name} ends with an assistant message; it must end with the turn that is answered")
    return messages


def _prompt(row: Row, column: str) -> Prompt:
    value = _value(row, column)
    if isinstance(value, list):
        return _prompt_of(_messages(value, column), column)
    return _text(row, column, empty=EMPTY_PROMPT)


def _completion(row: Row, column: str) -> str:
    """A completion that is a string, or a list that holds the assistant's one message."""
    value = _value(row, column)
    if not isinstance(value, list):
        return _text(row, column, empty=EMPTY_COMPLETION)
    messages = _messages(value, column)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RowProblem(f"{column} must be a string or one assistant message")
    if not messages[0].content.strip():
        raise RowDropped(EMPTY_COMPLETION)
    return messages[0].content


# --- records --------------------------------------------------------------------------------------------------------


def _demonstration_of(messages: tuple[Message, ...], name: str) -> Demonstration:
    """The last answer of a conversation, after everything before it."""
    if not messages or messages[-1].role != "assistant":
        raise RowDropped(NO_ANSWER)
    if not messages[-1].content.strip():
        raise RowDropped(EMPTY_COMPLETION)
    return Demonstration(_prompt_of(messages[:-1], name), messages[-1].content)


def _instruction(row: Row) -> tuple[Message, ...]:
    """An Alpaca instruction, and the input it is about where there is one, as one user message."""
    text = _text(row, "instruction", empty=EMPTY_PROMPT)
    given = _checked(row.values.get("input", ""), "input")
    return (Message("user", f"{text}\n\n{given}" if given.strip() else text),)


def dialogue(text: str) -> tuple[Message, ...] | None:
    """An Anthropic dialogue (`\\n\\nHuman: ... \\n\\nAssistant: ...`) as messages, or None for another text.

    Adjacent turns of one speaker become one message with a blank line between them.
    """
    pieces = _TURN.split(text)
    if pieces[0] or len(pieces) == 1:
        return None
    messages: list[Message] = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role, content = _SPEAKERS[speaker], content.strip()
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content}".strip()
        messages.append(Message(role, content))
    return tuple(messages)


def _pair(row: Row, prompt: Prompt, chosen: str, rejected: str) -> PreferencePair:
    if chosen.split() == rejected.split():
        raise RowDropped(EQUAL_PAIR)
    agreement = _number(row, "agreement") if "agreement" in row.values else 1.0
    annotators = _number(row, "num_annotators") if "num_annotators" in row.values else 1.0
    if not 0.5 <= agreement <= 1.0:
        raise RowProblem(f"agreement is {agreement:g}; it must lie between 0.5 and 1")
    if annotators < 1 or annotators != int(annotators):
        raise RowProblem(f"num_annotators is {annotators:g}; it must be a whole number of at least 1")
    ended = [_truth(row, name) if name in row.values else True for name in ("chosen_ended", "rejected_ended")]
    return PreferencePair(prompt, chosen, rejected, agreement, int(annotators), *ended)


def _preferred(pair: PreferencePair) -> Demonstration:
    """A pair as a demonstration: its preferred answer."""
    if not pair.chosen_ended:
        raise RowDropped(CUT_ANSWER)
    return Demonstration(pair.prompt, pair.chosen)


def _truth(row: Row, column: str) -> bool:
    value = _value(row, column)
    if not row.typed and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise RowProblem(f"{column} is {value!r}; it must be true or false")
    return value


def _pair_with_prompt(row: Row) -> PreferencePair:
    conversations = [
        value for value in (row.values.get("chosen"), row.values.get("rejected")) if isinstance(value, list)
    ]
    if len(conversations) == 2 and any(len(conversation) > 1 for conversation in conversations):
        pair = _pair_without_prompt(row)
        _check_stated_prompt(row, pair.prompt)
        return pair
    return _pair(row, _prompt(row, "prompt"), _completion(row, "chosen"), _completion(row, "rejected"))


def _check_stated_prompt(row: Row, prompt: Prompt) -> None:
    """Whole conversations repeat the prompt; a prompt column that says something else is an error, not a choice."""
    stated = _prompt(row, "prompt")
    contents = [] if isinstance(prompt, str) else [message.content for message in prompt if message.role == "user"]
    if stated != prompt and stated not in contents:
        raise RowProblem("prompt is not the beginning that chosen and rejected share")


def _pair_without_prompt(row: Row) -> PreferencePair:
    """Chosen and rejected each hold the whole text: the prompt is what they share."""
    values = [_value(row, "chosen"), _value(row, "rejected")]
    if all(isinstance(value, list) for value in values):
        conversations = [_messages(values[0], "chosen"), _messages(values[1], "rejected")]
    else:
        texts = [_text(row, column, empty=EMPTY_COMPLETION) for column in ("chosen", "rejected")]
        dialogues = [dialogue(text) for text in texts]
        if dialogues[0] is None or dialogues[1] is None:
            return _pair(row, *_shared_beginning(texts[0], texts[1]))
        conversations = [dialogues[0], dialogues[1]]
    chosen, rejected = (_demonstration_of(conversation, "chosen") for conversation in conversations)
    if chosen.prompt != rejected.prompt:
        raise RowDropped(NO_SHARED_PROMPT)
    return _pair(row, chosen.prompt, chosen.completion, rejected.completion)


def _shared_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of two texts: the prompt ends before the last space that both share."""
    if chosen.split() == rejected.split():
        raise RowDropped(EQUAL_PAIR)
    # The space at the end lets a text that is all shared end in a whole word.
    first, second = chosen + " ", rejected + " "
    differ = (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    shared = first[: next(differ, min(len(first), len(second)))]
    end = max(shared.rfind(" "), shared.rfind("\n"))
    prompt = shared[: max(end, 0)]
    if not prompt.strip():
        raise RowDropped(NO_SHARED_PROMPT)
    completions = chosen[len(prompt) :], rejected[len(prompt) :]
    if not all(completion.strip() for completion in completions):
        raise RowDropped(EMPTY_COMPLETION)
    return prompt, *completions


def _pair_by_label(row: Row) -> PreferencePair:
    """Two completions and a label that names the better one by its number."""
    label = _number(row, "label")
    if label not in (0.0, 1.0):
        raise RowDropped(OTHER_LABEL)
    answers = [_completion(row, column) for column in NUMBERED]
    return _pair(row, _prompt(row, "prompt"), answers[int(label)], answers[1 - int(label)])


def _labelled(text_column: str) -> Callable[[Row], LabelledText]:
    def make(row: Row) -> LabelledText:
        text = _text(row, text_column, empty=EMPTY_TEXT)
        label = _number(row, "label")
        if label not in (0.0, 1.0):
            raise RowDropped(OTHER_LABEL)
        given = row.values.get("prompt", "")
        return LabelledText(text, int(label), _prompt(row, "prompt") if given != "" else "")

    return make


def _conversation_prompt(row: Row) -> Prompt:
    messages = _messages(_value(row, "messages"), "messages")
    return _prompt_of(messages[:-1] if messages and messages[-1].role == "assistant" else messages, "messages")


_PAIR_EXTRAS = ("agreement", "num_annotators", "chosen_ended", "rejected_ended")
NUMBERED = ("completion_0", "completion_1")
"""Two completions; a label beside them is the number of the better one."""

FORMS: dict[Kind, tuple[Form, ...]] = {
    "text": (
        Form(("text",), lambda row: TextExample(_text(row, "text", empty=EMPTY_TEXT))),
        Form(("sentence",), lambda row: TextExample(_text(row, "sentence", empty=EMPTY_TEXT))),
    ),
    "demonstrations": (
        Form(("messages",), lambda row: _demonstration_of(_messages(_value(row, "messages"), "messages"), "messages")),
        Form(
            ("prompt", "completion"), lambda row: Demonstration(_prompt(row, "prompt"), _completion(row, "completion"))
        ),
        Form(
            ("instruction", "output"),
            lambda row: Demonstration(_instruction(row), _text(row, "output", empty=EMPTY_COMPLETION)),
            optional=("input",),
        ),
        Form(
            ("prompt", "chosen", "rejected"),
            lambda row: _preferred(_pair_with_prompt(row)),
            optional=_PAIR_EXTRAS,
        ),
        Form(("chosen", "rejected"), lambda row: _preferred(_pair_without_prompt(row)), optional=_PAIR_EXTRAS),
        Form(("prompt", *NUMBERED, "label"), lambda row: _preferred(_pair_by_label(row)), optional=_PAIR_EXTRAS[:2]),
    ),
    "pairs": (
        Form(("prompt", "chosen", "rejected"), _pair_with_prompt, optional=_PAIR_EXTRAS),
        Form(("chosen", "rejected"), _pair_without_prompt, optional=_PAIR_EXTRAS),
        Form(("prompt", *NUMBERED, "label"), _pair_by_label, optional=_PAIR_EXTRAS[:2]),
    ),
    "labelled": (
        Form(("text", "label"), _labelled("text"), optional=("prompt",)),
        Form(("sentence", "label"), _labelled("sentence")),
        Form(("prompt", "completion", "label"), _labelled("completion")),
    ),
    "prompts": (
        Form(("prompt",), lambda row: _prompt(row, "prompt")),
        Form(("messages",), _conversation_prompt),
        Form(("instruction",), _instruction, optional=("input",)),
        Form(("chosen", "rejected"), lambda row: _pair_without_prompt(row).prompt),
    ),
}
