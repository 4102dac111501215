"""Texts in the tokens of an encoder that serves as a reward model, by the encoder's own tokenizer.

A prompt and its answer are the two texts of the tokenizer's own pair form (`[CLS] prompt [SEP] answer [SEP]` for BERT,
`<s> prompt </s></s> answer </s>` for RoBERTa), so `tokenizer(prompt, answer)` in plain transformers gives the same
tokens. An answer to an empty prompt is a single text. The closing token marks the end: an answer that ended has it, one
that was cut has not.

As in the chat format, text from people and models never becomes a control token: a `[SEP]` inside a text is encoded as
the characters it is made of.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from prefloop.batches import TokenGroup
from prefloop.data.chat_format import PLAIN_NAMES, ChatFormat, PromptFormat
from prefloop.errors import DataError, ModelError, SettingsError
from prefloop.records import Demonstration, LabelledText, PreferencePair, Prompt, TextExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class EncoderFormat:
    """Lays prompts and answers out in an encoder's tokens.

    `prompt_format` says what the first text of a pair is:

    - "plain": turns `Human: ...` and `Assistant: ...` with a blank line between them; a string is one user message.
    - "raw": a string as it stands; messages are refused.
    - "auto": a string as in "raw", messages as in "plain".

    A group's prompt is everything before the answer, the opening token first; its responses are the answers with their
    closing tokens. A prompt of the opening token alone belongs to a text that stands by itself.

    Raises ModelError for a tokenizer without a Rust backend, without a padding token, or whose pairs do not open and
    close with one token each; SettingsError for "chat", because encoders have no chat template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", *, prompt_format: PromptFormat = "auto") -> None:
        if prompt_format not in ("auto", "plain", "raw"):
            raise SettingsError(f"prompt_format is {prompt_format!r}; for an encoder it is auto, plain or raw.")
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer {type(tokenizer).__name__} has no Rust backend; save it with a tokenizer.json file."
            )
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "The encoder's tokenizer has no padding token; set pad_token in its tokenizer_config.json."
            )
        self.prompt_format: PromptFormat = prompt_format
        specification = json.loads(tokenizer.backend_tokenizer.to_str())
        specification["truncation"] = specification["padding"] = None
        self._specification = json.dumps(specification, sort_keys=True)
        self._encoder = Tokenizer.from_str(self._specification)
        # Special tokens inside a text are characters like any others.
        self._encoder.encode_special_tokens = True
        self._opening_id, self._between, self.eos_id = _frame(self._encoder)
        # An unknown character is no control token.
        self._control_ids = frozenset(
            token for token in [*tokenizer.all_special_ids, self.eos_id] if token != tokenizer.unk_token_id
        )

    # --- from text to tokens and back ---------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Everything before the answer. Raises DataError for messages that do not end with the user's turn, for
        messages in the raw format, and for a text that cannot be written without control tokens.
        """
        if prompt == "":
            return (self._opening_id,)
        return (self._opening_id, *self._content_ids(self._first_text(prompt)), *self._between)

    def completion_ids(self, text: str, *, ended: bool = True) -> tuple[int, ...]:
        """The answer, with the closing token when `ended`.

        A cut answer without any token of its own (tokenizers of encoders drop spaces) is closed all the same, so that
        there is something to read. Raises DataError as `prompt_ids`.
        """
        ids = self._content_ids(text)
        return ids if ids and not ended else (*ids, self.eos_id)

    def spelled(self, token_ids: Sequence[int]) -> str:
        """The tokens as text with every special token written out."""
        return self._encoder.decode(list(token_ids), skip_special_tokens=False)

    def _first_text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return f"{PLAIN_NAMES['user']}: {prompt}" if self.prompt_format == "plain" else prompt
        if self.prompt_format == "raw":
            raise DataError("prompt_format=raw takes prompts that are strings; for messages use plain.")
        if not prompt or prompt[-1].role == "assistant":
            found = "is empty" if not prompt else "ends with an assistant message"
            raise DataError(f"A prompt {found}; it must end with the turn that the answer follows.")
        return "\n\n".join(f"{PLAIN_NAMES[message.role]}: {message.content}" for message in prompt)

    def _content_ids(self, text: str) -> tuple[int, ...]:
        ids = self._encoder.encode(text, add_special_tokens=False).ids
        forged = self._control_ids.intersection(ids)
        if forged:
            tokens = ", ".join(repr(self._encoder.id_to_token(token)) for token in sorted(forged))
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise DataError(
                f"The text {shown!r} becomes the control token {tokens}, and the tokenizer cannot write it in ordinary "
                "tokens; remove it from the text."
            )
        return tuple(ids)

    # --- from records to groups ---------------------------------------------------------------------------------

    def prompt_group(self, prompt: Prompt) -> TokenGroup:
        """The prompt alone."""
        return TokenGroup(self.prompt_ids(prompt), ())

    def text_group(self, example: TextExample) -> TokenGroup:
        """A text that stands by itself."""
        return TokenGroup(self.prompt_ids(""), (self.completion_ids(example.text),))

    def demonstration_group(self, demonstration: Demonstration) -> TokenGroup:
        """The prompt with its one answer."""
        return TokenGroup(self.prompt_ids(demonstration.prompt), (self.completion_ids(demonstration.completion),))

    def pair_group(self, pair: PreferencePair) -> TokenGroup:
        """The prompt with two answers: the chosen, then the rejected."""
        chosen = self.completion_ids(pair.chosen, ended=pair.chosen_ended)
        return TokenGroup(
            self.prompt_ids(pair.prompt), (chosen, self.completion_ids(pair.rejected, ended=pair.rejected_ended))
        )

    def labelled_group(self, labelled: LabelledText) -> TokenGroup:
        """The text as an answer to its prompt, or by itself where the prompt is empty."""
        return self.demonstration_group(Demonstration(labelled.prompt, labelled.text))

    def truncated(self, group: TokenGroup, max_length: int) -> TokenGroup:
        """The group within `max_length` tokens per answer: the prompt's text cut from the left, the tokens around it
        kept. Where an answer alone is too long its end is cut, and with it the closing token.

        Raises SettingsError where `max_length` leaves no room for a token of the answer.
        """
        closing = group.prompt[len(group.prompt) - len(self._between) :] if len(group.prompt) > 1 else ()
        around = 1 + len(closing)
        if max_length <= around:
            raise SettingsError(
                f"max_length is {max_length}, and the encoder's own tokens before an answer are {around}: raise it."
            )
        longest = max((len(response) for response in group.responses), default=0)
        text = group.prompt[1 : len(group.prompt) - len(closing)]
        room = max(0, max_length - longest - around)
        prompt = (*group.prompt[:1], *text[max(0, len(text) - room) :], *closing)
        return TokenGroup(prompt, tuple(response[: max_length - len(prompt)] for response in group.responses))

    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal of vocabulary and format."""
        parts = ["encoder", self._specification, self.prompt_format]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


TextFormat = ChatFormat | EncoderFormat
"""What lays texts out in a model's tokens."""


def _frame(encoder: Tokenizer) -> tuple[int, tuple[int, ...], int]:
    """What the tokenizer puts before, between and after the two texts of a pair."""
    letter = encoder.encode("a", add_special_tokens=False)
    pair = encoder.post_process(letter, encoder.encode("a", add_special_tokens=False), True)
    length = len(letter.ids)
    texts = [place for place, special in enumerate(pair.special_tokens_mask) if not special]
    if length and len(texts) == 2 * length:
        before = pair.ids[: texts[0]]
        between = pair.ids[texts[length - 1] + 1 : texts[length]]
        after = pair.ids[texts[-1] + 1 :]
        if len(before) == 1 and between and len(after) == 1:
            return before[0], tuple(between), after[0]
    shown = " ".join(pair.tokens)
    raise ModelError(
        f"The encoder's tokenizer writes a pair of texts as {shown!r}; a reward model needs one token that opens it, "
        "one that closes it, and one or more between the texts."
    )
