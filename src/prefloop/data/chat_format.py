"""The only place where text becomes tokens, for training and for generation alike.

Prompt and completion are tokenised separately and their ids concatenated, so no token spans the boundary. The policy
generates after exactly the ids that it was trained on, and a reward model reads exactly the ids that were sampled.

Text from people and models never becomes a control token. A *control token* is a special token, or an added token that
the chat template writes itself (a tool or reasoning tag); such text inside a content is encoded as ordinary characters.
Every encoded content is checked for this, and a text that the tokenizer cannot write in ordinary tokens is refused.
The plain format has no control tokens: its role names are ordinary text, which a content can imitate.
"""

import functools
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from prefloop.batches import TokenGroup
from prefloop.errors import DataError, ModelError, SettingsError
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, Prompt, TextExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PromptFormat = Literal["auto", "chat", "plain", "raw"]
Layout = Literal["chat", "plain", "raw"]

PLAIN_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}


class ChatFormat:
    """Lays prompts and completions out in tokens.

    `prompt_format` says how a prompt is laid out:

    - "chat": with the tokenizer's chat template; a string is one user message.
    - "plain": turns `Human: ...` and `Assistant: ...` with a blank line between them, then `Assistant:`; a completion
      starts with a space. A string is one user message.
    - "raw": a string as it stands; messages are refused.
    - "auto": a string as in "raw"; messages as in "chat" if the tokenizer has a template, else as in "plain". Without
      a template the two lay out completions differently, so the first prompt settles which of them this format is.

    Raw and plain prompts open with the start token: the beginning-of-sequence token, or the end-of-sequence token where
    a tokenizer has no other, so that an empty prompt still holds one token to predict from. A chat template writes its
    own. `max_length` (tokens) is the longest prompt that `prompt_ids` lays out; the groups leave lengths to the audit.

    Raises ModelError for a tokenizer without an end-of-sequence token, without a Rust backend, or without the template
    that "chat" needs, and for a template that ends an answer with anything but the end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        prompt_format: PromptFormat = "auto",
        max_length: int | None = None,
    ) -> None:
        if prompt_format not in get_args(PromptFormat):
            raise SettingsError(
                f"prompt_format is {prompt_format!r}; it must be one of {', '.join(get_args(PromptFormat))}."
            )
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer {type(tokenizer).__name__} has no Rust backend; save it with a tokenizer.json file."
            )
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end-of-sequence token, so answers could never end; set tokenizer.eos_token to a "
                "token of its vocabulary and save it again."
            )
        if prompt_format == "chat" and tokenizer.chat_template is None:
            raise ModelError(
                "prompt_format=chat needs a chat template and the tokenizer has none; use prompt_format=plain."
            )
        self.prompt_format: PromptFormat = prompt_format
        self.max_length = max_length
        self.eos_id = _single_id(tokenizer.eos_token_id)
        self.start_id = self.eos_id if tokenizer.bos_token_id is None else _single_id(tokenizer.bos_token_id)
        self._tokenizer = tokenizer
        self._has_template = tokenizer.chat_template is not None
        self._template_text = json.dumps(tokenizer.chat_template, sort_keys=True)
        self._settled: Layout | None = None
        self._template_checked = False
        # Prompts come again and again, with several completions each, and a template is slow to render.
        self._prompt_ids = functools.lru_cache(maxsize=65_536)(self._laid_out_prompt)
        # A content cannot hold it by chance or on purpose: it is drawn anew and never shown.
        self._sentinel_stem = secrets.token_hex(16)
        self._sentinel_pattern = re.compile(rf"({self._sentinel_stem}\d{{6}})")
        self._set_up_encoders()
        if prompt_format == "chat":
            self._check_end_of_answer()

    def _set_up_encoders(self) -> None:
        """Private copies of the backend: one reads control tokens, one writes them as ordinary characters."""
        specification = json.loads(self._tokenizer.backend_tokenizer.to_str())
        specification["truncation"] = specification["padding"] = None
        self._specification = json.dumps(specification, sort_keys=True)
        self._template_encoder = Tokenizer.from_str(self._specification)

        template = self._template_text if self._has_template else ""
        # An unknown character is no control token, unless a tokenizer uses one id for both.
        unknown = self._tokenizer.unk_token_id
        named = {token for token in self._tokenizer.all_special_ids if token != unknown} | {self.eos_id, self.start_id}
        for token in specification["added_tokens"]:
            text: str = token["content"]
            written_by_template = bool(text.strip()) and json.dumps(text)[1:-1] in template
            if written_by_template or (token["special"] and token["id"] != unknown):
                named.add(token["id"])
                token["special"] = True
        self._control_ids = frozenset(named)
        self._text_encoder = Tokenizer.from_str(json.dumps(specification))
        self._text_encoder.encode_special_tokens = True

    # --- from text to tokens and back ---------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt in tokens, up to where the answer begins. At least one token.

        Raises DataError for messages that do not end with the user's turn, for messages in the raw format, for a text
        that cannot be written without control tokens, and for more than `max_length` tokens.
        """
        ids = self._prompt_ids(prompt)
        if self.max_length is not None and len(ids) > self.max_length:
            raise DataError(
                f"A prompt has {len(ids)} tokens; at most {self.max_length} fit. Shorten it or raise max_length."
            )
        return ids

    def completion_ids(self, text: str, *, ended: bool = True) -> tuple[int, ...]:
        """The completion in tokens, with the end-of-sequence token when `ended`. Raises DataError as `prompt_ids`."""
        return self._answer_ids(text) + ((self.eos_id,) if ended else ())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The completion as text: no special tokens, and without the space that opens it in the plain format."""
        text = self._template_encoder.decode(list(token_ids), skip_special_tokens=True)
        return text.removeprefix(" ") if self._completion_layout() == "plain" else text

    def spelled(self, token_ids: Sequence[int]) -> str:
        """The tokens as text with every special token written out: for showing what a model is trained on."""
        return self._template_encoder.decode(list(token_ids), skip_special_tokens=False)

    def _laid_out_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        layout = self._prompt_layout(prompt)
        if layout == "raw":
            assert isinstance(prompt, str)
            return (self.start_id, *self._content_ids(prompt))
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if not messages or messages[-1].role == "assistant":
            found = "is empty" if not messages else "ends with an assistant message"
            raise DataError(f"A prompt {found}; it must end with the turn that the answer follows.")
        if layout == "chat":
            return self._chat_joints(messages, [len(messages)])[0]
        answers = _answers(messages)
        ids: list[int] = []
        for joint, position in zip(
            self._plain_joints(messages, [*answers, len(messages)]), [*answers, None], strict=True
        ):
            ids.extend(joint)
            if position is not None:
                ids.extend(self._answer_ids(messages[position].content))
        return tuple(ids)

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        return self._content_ids(" " + text if self._completion_layout() == "plain" else text)

    def _content_ids(self, text: str) -> tuple[int, ...]:
        """Untrusted text in ordinary tokens."""
        ids = self._text_encoder.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            forged = sorted(self._control_ids.intersection(ids))
            tokens = ", ".join(repr(self._template_encoder.id_to_token(token)) for token in forged)
            raise DataError(
                f"The text {_excerpt(text)} becomes the control token {tokens}, and the tokenizer cannot write it in "
                "ordinary tokens; remove it from the text."
            )
        return tuple(ids)

    # --- from records to groups ---------------------------------------------------------------------------------

    def prompt_group(self, prompt: Prompt) -> TokenGroup:
        """The prompt alone, of any length."""
        return TokenGroup(self._prompt_ids(prompt), ())

    def text_group(self, example: TextExample) -> TokenGroup:
        """The start token, then the whole text and the end-of-sequence token."""
        return TokenGroup((self.start_id,), ((*self._content_ids(example.text), self.eos_id),))

    def demonstration_group(self, demonstration: Demonstration) -> TokenGroup:
        """The prompt with its one answer."""
        prompt = self._prompt_ids(demonstration.prompt)
        return TokenGroup(prompt, (self.completion_ids(demonstration.completion),))

    def pair_group(self, pair: PreferencePair) -> TokenGroup:
        """The prompt with two responses: the chosen, then the rejected."""
        prompt = self._prompt_ids(pair.prompt)
        chosen = self.completion_ids(pair.chosen, ended=pair.chosen_ended)
        return TokenGroup(prompt, (chosen, self.completion_ids(pair.rejected, ended=pair.rejected_ended)))

    def labelled_group(self, labelled: LabelledText) -> TokenGroup:
        """The text as an answer to its prompt, or as a whole text where the prompt is empty."""
        if not labelled.prompt:
            return self.text_group(TextExample(labelled.text))
        return self.demonstration_group(Demonstration(labelled.prompt, labelled.text))

    def messages_group(self, messages: Sequence[Message]) -> TokenGroup:
        """A conversation as one response, supervised on the assistant's tokens and their ends of turn only.

        The prompt is what stands before the first answer. Every answer stands after the ids that it would be generated
        after; with a single answer the group equals `demonstration_group`, all tokens supervised. In the plain format
        only the last answer ends with the end-of-sequence token. Raises DataError unless the conversation opens with
        another role than the assistant and ends with the assistant, and ModelError for a template that rewrites
        earlier turns as the conversation goes on.
        """
        messages = tuple(messages)
        answers = _answers(messages)
        if not answers or answers[0] == 0 or answers[-1] != len(messages) - 1:
            raise DataError("A conversation must open with a system or user message and end with an assistant message.")
        layout = self._prompt_layout(messages)
        joints = (self._chat_joints if layout == "chat" else self._plain_joints)(messages, answers)
        response: list[int] = []
        supervised: list[bool] = []
        for number, (joint, position) in enumerate(zip(joints, answers, strict=True)):
            if number:
                response.extend(joint)
                supervised.extend(place == 0 and token == self.eos_id for place, token in enumerate(joint))
            answer = self._answer_ids(messages[position].content)
            response.extend(answer)
            supervised.extend([True] * len(answer))
        return TokenGroup(joints[0], ((*response, self.eos_id),), ((*supervised, True),))

    def truncated(self, group: TokenGroup, max_length: int) -> TokenGroup:
        """The group within `max_length` tokens per response: the prompt cut from the left, its start token kept.

        Where a response alone is too long its end is cut, and with it the end-of-sequence token.
        """
        longest = max((len(response) for response in group.responses), default=0)
        room = max(1, max_length - longest)
        prompt = group.prompt
        if len(prompt) > room:
            opening = prompt[:1] if prompt[0] == self.start_id and room > 1 else ()
            prompt = opening + prompt[len(prompt) - room + len(opening) :]
        room = max_length - len(prompt)
        supervised = None if group.supervised is None else tuple(mask[:room] for mask in group.supervised)
        return TokenGroup(prompt, tuple(response[:room] for response in group.responses), supervised)

    # --- layouts ------------------------------------------------------------------------------------------------

    def _prompt_layout(self, prompt: Prompt) -> Layout:
        is_text = isinstance(prompt, str)
        if self.prompt_format == "raw" and not is_text:
            raise DataError("prompt_format=raw takes prompts that are strings; for messages use chat or plain.")
        if self.prompt_format != "auto":
            return self.prompt_format
        if self._has_template:
            if not is_text:
                self._check_end_of_answer()
            return "raw" if is_text else "chat"
        return self._settle("raw" if is_text else "plain")

    def _completion_layout(self) -> Layout:
        if self.prompt_format != "auto":
            return self.prompt_format
        return "raw" if self._has_template else self._settled or self._settle("raw")

    def _settle(self, layout: Layout) -> Layout:
        """Without a template, one automatic format lays out strings or messages, never both: see the class."""
        if self._settled not in (None, layout):
            raise DataError(
                "Prompts that are strings and prompts that are messages come together under prompt_format=auto, and "
                "the tokenizer has no chat template; use prompt_format=plain for both."
            )
        self._settled = layout
        return layout

    def _plain_joints(self, messages: tuple[Message, ...], answers: Sequence[int]) -> list[tuple[int, ...]]:
        """What stands before each answer: the turns since the one before, then the assistant's name."""
        joints: list[tuple[int, ...]] = []
        begin = 0
        for position in answers:
            turns = [f"{PLAIN_NAMES[message.role]}: {message.content}" for message in messages[begin:position]]
            text = "\n\n".join([*turns, f"{PLAIN_NAMES['assistant']}:"])
            opening = (self.start_id,) if not joints else ()
            joints.append((*opening, *self._content_ids("\n\n" + text if joints else text)))
            begin = position + 1
        return joints

    def _chat_joints(self, messages: tuple[Message, ...], answers: Sequence[int]) -> list[tuple[int, ...]]:
        """What the template writes before each answer, after the answer before it.

        The template is rendered twice: with a random sentinel in place of every content, which shows what the template
        itself writes, and with the contents. The second is kept where its control tokens are the first's, so that a
        benign chat has the ids of `apply_chat_template`; otherwise template and contents are encoded apart.
        """
        sentinels = [f"{self._sentinel_stem}{position:06d}" for position in range(len(messages))]
        contents = {sentinel: message.content.strip() for sentinel, message in zip(sentinels, messages, strict=True)}
        hidden: list[str] = []
        shown: list[str] = []
        for position, (sentinel, message) in enumerate(zip(sentinels, messages, strict=True)):
            if position in answers:
                hidden.append(sentinel)
                shown.append(sentinel)
                continue
            shown.append(message.content)
            stripped = message.content.strip()
            # The outer space stays visible, so that a template that trims contents trims it.
            hidden.append(message.content.replace(stripped, sentinel, 1) if stripped else message.content)
        hidden_joints = list(self._rendered_joints(messages, hidden, answers))
        self._check_contents_kept(messages, hidden, sentinels, "".join(hidden_joints), answers)
        shown_joints = self._rendered_joints(messages, shown, answers)
        return [
            self._joint_ids(with_sentinels, with_contents, contents)
            for with_sentinels, with_contents in zip(hidden_joints, shown_joints, strict=True)
        ]

    def _joint_ids(self, with_sentinels: str, with_contents: str, contents: dict[str, str]) -> tuple[int, ...]:
        allowed = self._controls(self._template_ids(with_sentinels))
        pieces = self._sentinel_pattern.split(with_sentinels)
        # Contents stand at the odd places, template text at the even ones.
        benign = all(not self._controls(self._template_ids(contents[piece])) for piece in pieces[1::2])
        ids = self._template_ids(with_contents)
        if benign and self._controls(ids) == allowed:
            return tuple(ids)
        ids = []
        for place, piece in enumerate(pieces):
            ids.extend(self._content_ids(contents[piece]) if place % 2 else self._template_ids(piece))
        if self._controls(ids) != allowed:
            raise DataError(
                "The contents of a chat change the control tokens around them; remove special text from it."
            )
        return tuple(ids)

    def _template_ids(self, text: str) -> list[int]:
        return self._template_encoder.encode(text, add_special_tokens=False).ids

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._control_ids]

    # --- the chat template --------------------------------------------------------------------------------------

    def _rendered_joints(
        self, messages: tuple[Message, ...], contents: Sequence[str], answers: Sequence[int]
    ) -> Iterator[str]:
        written = ""
        for position in answers:
            text = self._render(messages[:position], contents[:position], add_generation_prompt=True)
            if not text.startswith(written):
                raise ModelError(
                    "The chat template rewrites earlier turns as a conversation goes on, so not every answer can be "
                    "trained on at once; give the rows as prompt and completion to train on the last answer."
                )
            yield text[len(written) :]
            written = text + contents[position] if position < len(messages) else text

    def _render(self, messages: Sequence[Message], contents: Sequence[str], *, add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": text} for message, text in zip(messages, contents, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(f"The chat template refuses a conversation of the roles {roles}: {error}.") from error
        assert isinstance(text, str)
        return text

    def _check_contents_kept(
        self,
        messages: tuple[Message, ...],
        hidden: Sequence[str],
        sentinels: Sequence[str],
        rendered: str,
        answers: Sequence[int],
    ) -> None:
        for position, (message, content, sentinel) in enumerate(zip(messages, hidden, sentinels, strict=True)):
            if position not in answers and sentinel in content and sentinel not in rendered:
                raise DataError(
                    f"The chat template leaves out message {position + 1} ({message.role}: "
                    f"{_excerpt(message.content)}); remove the message or use prompt_format=plain."
                )

    def _check_end_of_answer(self) -> None:
        """Generation stops at the end-of-sequence token, so the template must end an answer with it."""
        if self._template_checked:
            return
        question, answer = secrets.token_hex(16), secrets.token_hex(16)
        turns = (Message("user", question), Message("assistant", answer))
        rendered = self._render(turns, [question, answer], add_generation_prompt=False)
        tail = rendered.partition(answer)[2]
        if self._template_ids(tail)[:1] != [self.eos_id]:
            raise ModelError(
                f"The chat template ends an answer with {tail!r}, and the tokenizer's end-of-sequence token is "
                f"{self._tokenizer.eos_token!r}; set tokenizer.eos_token to the token that ends an answer, or use "
                "prompt_format=plain."
            )
        self._template_checked = True

    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal of vocabulary, template and format: equal prints may exchange token ids."""
        parts = [self._specification, self._template_text, self.prompt_format, self.eos_id, self.start_id]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _answers(messages: Sequence[Message]) -> list[int]:
    return [position for position, message in enumerate(messages) if message.role == "assistant"]


def _single_id(token_id: object) -> int:
    if not isinstance(token_id, int):
        raise ModelError(f"The tokenizer gives {token_id!r} as the id of a special token; it must be one number.")
    return token_id


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
