"""A conversation with one model: the turns so far, and how the next answer is drawn."""

import math
from collections.abc import Iterator

import torch

from prefloop.cli.label_terminal import plain
from prefloop.contracts import Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.errors import ModelError
from prefloop.models.policy import Policy
from prefloop.records import Completion, Message, Prompt
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.streamed_text import StreamedText

HELP = """/reset               forget the conversation
/set temperature 0.7  how boldly it answers (0 always takes the likeliest token)
/set length 200       the most tokens of an answer
/set history off      every question stands alone (on: it sees what was said before)
/help                this list
/quit                leave (Ctrl-D too)"""


class Conversation:
    """Talks to one model. `last` is its latest answer, as far as it came."""

    def __init__(
        self,
        policy: Policy,
        chat_format: ChatFormat,
        *,
        temperature: float,
        max_new_tokens: int,
        keeps_history: bool,
        seed: int,
    ) -> None:
        self.chat_format = chat_format
        self.generator = PolicyGenerator(policy, chat_format)
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.keeps_history = keeps_history
        self.turns: list[Message] = []
        self.random = torch.Generator().manual_seed(seed)
        self.last = Completion("")

    def command(self, line: str) -> str:
        """What a line that starts with a slash does, in words."""
        words = line.split()
        if words[0] == "/reset":
            self.turns = []
            return "forgotten"
        if words[0] == "/set":
            return self._set(words[1:])
        return HELP if words[0] == "/help" else f"there is no {words[0]}; what there is:\n{HELP}"

    def _set(self, words: list[str]) -> str:
        try:
            name, value = words
            if name == "temperature" and 0 <= float(value) < math.inf:
                self.temperature = float(value)
                return f"temperature is {self.temperature:g}"
            if name == "length" and int(value) > 0:
                self.max_new_tokens = int(value)
                return f"answers have at most {self.max_new_tokens} tokens"
            if name == "history" and value in ("on", "off"):
                self.keeps_history = value == "on"
                self.turns = []
                return "it sees what was said from here on" if self.keeps_history else "every question stands alone"
        except ValueError:
            pass  # Said below, like every other setting that there is not.
        return f"'{' '.join(words)}' cannot be set; try /set temperature 0.7, /set length 200 or /set history off"

    def prompt(self, line: str) -> Prompt:
        """What the model is asked: the turns so far and the line, or the line alone for a model of plain text."""
        if self.chat_format.prompt_format == "raw":
            return line
        return (*self.turns, Message("user", line))

    def pieces(self, line: str) -> Iterator[str]:
        """The answer as it comes. It becomes part of the conversation only by `keep`.

        Raises ModelError when the conversation fills the context, and DataError for a line that cannot be laid out.
        """
        prompt_ids = self.chat_format.prompt_ids(self.prompt(line))
        limit = self.generator.context_length
        room = self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - len(prompt_ids))
        if room < 1:
            raise ModelError("the conversation fills the model's context: /reset to begin anew")
        streamed = StreamedText(self.chat_format)
        sampling = Sampling(room, temperature=self.temperature)
        ended = False
        for token in self.generator.stream(prompt_ids, sampling=sampling, random=self.random):
            ended = token == self.chat_format.eos_id
            yield streamed.push(token)
        yield streamed.finish()
        self.last = Completion(streamed.text, ended=ended)

    def keep(self, line: str, answer: str) -> None:
        """Makes both a part of what the model sees next time, where it sees what was said before."""
        if self.keeps_history:
            self.turns += [Message("user", line), Message("assistant", answer)]

    def answer(self, line: str) -> str:
        """Streams the answer to the terminal, keeps it, and returns it. Raises as `pieces`."""
        for piece in self.pieces(line):
            # What a model writes must not command the terminal.
            print(plain(piece), end="", flush=True)
        print()
        self.keep(line, self.last.text)
        return self.last.text
