"""prefloop chat: talk to a model."""

import math
from typing import Annotated

import typer

HELP = """/reset               forget the conversation
/set temperature 0.7  how boldly it answers (0 always takes the likeliest token)
/set length 200       the most tokens of an answer
/help                this list
/quit                leave (Ctrl-D too)"""


def command(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a Hub name.")],
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 200,
    history: Annotated[bool, typer.Option(help="Whether it sees what was said before.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Ask it something; the answer streams. /help lists what else can be typed."""
    from prefloop.cli.model_folders import model_folder
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.runs.stage_context import read_policy

    policy, chat_format = read_policy(model_folder(model), precision="float32")
    talk = Conversation(policy, chat_format, temperature, max_new_tokens, keeps_history=history, seed=seed)
    print(f"{model}: ask it something. /help lists what else can be typed; Ctrl-D leaves.")
    while True:
        try:
            line = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        if line.startswith("/"):
            print(talk.command(line))
        elif line:
            try:
                talk.answer(line)
            except KeyboardInterrupt:
                print(" (stopped)")


class Conversation:
    """The turns so far, and how the next answer is drawn."""

    def __init__(
        self,
        policy: object,
        chat_format: object,
        temperature: float,
        max_new_tokens: int,
        *,
        keeps_history: bool,
        seed: int,
    ) -> None:
        import torch

        from prefloop.data.chat_format import ChatFormat
        from prefloop.models.policy import Policy
        from prefloop.records import Message
        from prefloop.rollouts.generate import PolicyGenerator

        assert isinstance(policy, Policy)
        assert isinstance(chat_format, ChatFormat)
        self.chat_format = chat_format
        self.generator = PolicyGenerator(policy, chat_format)
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.keeps_history = keeps_history
        self.turns: list[Message] = []
        self.random = torch.Generator().manual_seed(seed)

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
        except ValueError:
            pass  # Said below, like every other setting that there is not.
        return f"'{' '.join(words)}' cannot be set; try /set temperature 0.7 or /set length 200"

    def answer(self, line: str) -> str:
        """Streams the answer to the terminal and returns it."""
        from prefloop.contracts import Sampling
        from prefloop.records import Message

        asked = [*self.turns, Message("user", line)] if self.keeps_history else [Message("user", line)]
        raw = self.chat_format.prompt_format == "raw"
        prompt_ids = self.chat_format.prompt_ids(line if raw else tuple(asked))
        limit = self.generator.policy.backbone.max_length
        room = self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - len(prompt_ids))
        if room < 1:
            print("(the conversation fills the model's context: /reset to begin anew)")
            return ""
        ids: list[int] = []
        shown = ""
        for token in self.generator.stream(
            prompt_ids, sampling=Sampling(room, temperature=self.temperature), random=self.random
        ):
            ids.append(token)
            text = self.chat_format.decode(ids)
            # A character may be spread over several tokens: it is printed when it is whole.
            if not text.endswith("\ufffd"):
                print(text[len(shown) :], end="", flush=True)
                shown = text
        print()
        self.turns = [*asked, Message("assistant", shown)] if self.keeps_history else []
        return shown
