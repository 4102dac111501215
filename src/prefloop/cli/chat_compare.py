"""Two models in one conversation, blind: who stands on which side is drawn for each turn and told at the end.

Each choice is kept in a label project as it is made: the pair, with the models as the sources of its answers, and then
the label. So chats can be exported, trained on and counted like any other labels.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from prefloop import __version__
from prefloop.cli.chat import next_line
from prefloop.cli.conversation import HELP, Conversation
from prefloop.cli.label_terminal import CHOICES, LineKeys, TerminalKeys, plain
from prefloop.collection.annotators import shows_swapped
from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair
from prefloop.collection.store import LabelStore, open_store
from prefloop.collection.stored_rows import other_side
from prefloop.errors import DataError, PrefloopError
from prefloop.formulas.intervals import wilson_interval
from prefloop.records import Choice, Comparison, Completion, Prompt

KEY_LINE = "1 or 2 is better   t tie   b both bad   s skip"
SIDE_BY_SIDE_COLUMNS = 80
SAID: dict[Choice, str] = {
    "left": "Answer 1 goes on.",
    "right": "Answer 2 goes on.",
    "tie": "A tie; answer 1 goes on.",
    "both_bad": "Both bad; the conversation goes on without this turn.",
    "skip": "Skipped; answer 1 goes on.",
}


@dataclass(frozen=True)
class Turn:
    """A question with both models' answers. `swapped`: the first model's answer is displayed as answer 2."""

    pair_id: str
    prompt: Prompt
    answers: tuple[Completion, Completion]
    swapped: bool
    shown_at: float

    @property
    def displayed(self) -> tuple[Completion, Completion]:
        """The answers as they stand on the screen."""
        first, second = self.answers
        return (second, first) if self.swapped else (first, second)


class BlindComparison:
    """One person, two models. `read_key` gives a key, as `label_terminal.Keys` does; `clock` seconds since 1970."""

    def __init__(
        self,
        talks: tuple[Conversation, Conversation],
        names: tuple[str, str],
        *,
        store: LabelStore,
        annotator: str,
        read_key: Callable[[], str],
        console: Console,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.talks = talks
        self.names = names
        self.store = store
        self.annotator = annotator
        self.read_key = read_key
        self.console = console
        self.clock = clock
        self.choices: Counter[Choice] = Counter()
        """By model: "left" is the first one's."""
        self.num_without_choice = 0

    def run(self) -> None:
        """Asks, shows and keeps until the person leaves; then says who won."""
        self._say("Two models answer; which is which is told when you leave (Ctrl-D). /help lists what can be typed.")
        while (line := next_line()) is not None:
            if line.startswith("/"):
                said = [talk.command(line) for talk in self.talks]
                self._say(said[0])
            elif line:
                try:
                    self._turn(line)
                except KeyboardInterrupt:
                    self._say("(stopped; nothing was kept of this turn)")
                except EOFError:
                    break
                except PrefloopError as problem:
                    self._say(f"({problem})")
        for text in summary(self.names, self.choices, num_without_choice=self.num_without_choice):
            self._say(text)

    def _turn(self, line: str) -> None:
        turn = self._answered(line)
        self._show(turn)
        one, other = (answer.text for answer in turn.displayed)
        if not (one.strip() and other.strip()) or one.split() == other.split():
            self.num_without_choice += 1
            self._say("The answers are the same, or one is empty: there is nothing to choose.")
            self._go_on(line, one if one.strip() else other)
            return
        self._say(KEY_LINE)
        choice = self._choice()
        self._keep(turn, choice)
        self.choices[other_side(choice) if turn.swapped else choice] += 1
        self._say(SAID[choice])
        if choice != "both_bad":
            self._go_on(line, other if choice == "right" else one)

    def _answered(self, line: str) -> Turn:
        prompts = [talk.prompt(line) for talk in self.talks]
        # A model of plain text sees the line alone; the other one, if it is another kind, saw the turns before it too.
        prompt = next((one for one in prompts if not isinstance(one, str)), prompts[0])
        answers = []
        with self.console.status("two models are answering"):
            for talk in self.talks:
                for _ in talk.pieces(line):
                    pass
                answers.append(talk.last)
        pair_id = f"chat-{uuid.uuid4().hex}"
        # The id is new for each turn, so the sides cannot be told from those of an earlier conversation.
        swapped = shows_swapped(pair_id, self.annotator, seed=self.store.settings.seed)
        return Turn(pair_id, prompt, (answers[0], answers[1]), swapped, self.clock())

    def _choice(self) -> Choice:
        while True:
            key = self.read_key()
            if key in CHOICES:
                return CHOICES[key]
            if key == "?":
                self._say(f"{KEY_LINE}\n{HELP}")

    def _keep(self, turn: Turn, displayed_choice: Choice) -> None:
        """The pair, and then the label."""
        left, right = (
            Completion(answer.text, ended=answer.ended, source=name)
            for answer, name in zip(turn.answers, self.names, strict=True)
        )
        details = {
            "from": "chat",
            "temperature": self.talks[0].temperature,
            "max_new_tokens": self.talks[0].max_new_tokens,
        }
        self.store.add_pairs([StoredPair(Comparison(turn.pair_id, turn.prompt, left, right, details))])
        now = self.clock()
        self.store.import_labels(
            [
                LabelEvent(
                    event_id=0,
                    submission_id=uuid.uuid4().hex,
                    event="label",
                    pair_id=turn.pair_id,
                    kind="regular",
                    annotator=self.annotator,
                    choice=other_side(displayed_choice) if turn.swapped else displayed_choice,
                    displayed_choice=displayed_choice,
                    swapped=turn.swapped,
                    strength=None,
                    rationale="",
                    opened_at=turn.shown_at,
                    submitted_at=now,
                    received_at=now,
                    revision=1,
                    client_version=f"chat {__version__}",
                    chosen_by="random",
                )
            ]
        )

    def _go_on(self, line: str, answer: str) -> None:
        for talk in self.talks:
            talk.keep(line, answer)

    def _show(self, turn: Turn) -> None:
        panels = [_panel(number, answer) for number, answer in enumerate(turn.displayed, start=1)]
        if self.console.width < SIDE_BY_SIDE_COLUMNS:
            self.console.print(*panels, sep="\n")
            return
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(*panels)
        self.console.print(grid)

    def _say(self, text: str) -> None:
        self.console.print(Text(plain(text)))


def _panel(number: int, answer: Completion) -> Panel:
    body = Text(plain(answer.text))
    if not answer.ended:
        body.append("\n(cut at the length limit)", style="dim")
    return Panel(body, title=f"Answer {number}", title_align="left")


def summary(names: Sequence[str], choices: Counter[Choice], *, num_without_choice: int = 0) -> list[str]:
    """Who won how often, line by line; `choices` by model. Ties and both bad count one half for each, skips nothing."""
    num = sum(choices.values()) - choices["skip"]
    undecided = choices["tie"] + choices["both_bad"]
    lines = []
    if num == 0:
        lines.append(f"{names[0]} and {names[1]}: no choice was made.")
    else:
        for name, side in zip(names, ("left", "right"), strict=True):
            wins = choices[side] + undecided / 2
            low, high = wilson_interval(wins, num)
            lines.append(
                f"{name} won {choices[side]} of {num}: {wins / num:.0%}, 95 % interval {low:.0%} to {high:.0%}"
            )
        if undecided:
            lines.append(f"Ties: {choices['tie']}, both bad: {choices['both_bad']}; each counts one half for both.")
    if choices["skip"]:
        lines.append(f"Skipped, and not counted: {choices['skip']}.")
    if num_without_choice:
        lines.append(f"Nothing to choose (the same answer twice, or an empty one): {num_without_choice}.")
    return lines


def compare_in_terminal(
    talks: tuple[Conversation, Conversation], names: tuple[str, str], *, location: str, name: str, stdin: TextIO
) -> None:
    """Compares at this terminal, or from lines of text where `stdin` is none.

    The project at `location` is made when it is missing, for one label a pair; one that exists keeps its rules.
    """

    def read_key() -> str:
        if not stdin.isatty():
            return LineKeys(stdin).read_key()
        with TerminalKeys(stdin.fileno()) as keys:
            return keys.read_key()

    with _project(location) as store:
        if not any(account.name == name for account in store.accounts()):
            store.add_account(name, role="annotator" if store.accounts() else "admin")
        console = Console(highlight=False, emoji=False, markup=False)
        comparison = BlindComparison(talks, names, store=store, annotator=name, read_key=read_key, console=console)
        comparison.run()
    num = sum(comparison.choices.values())
    console.print(Text(plain(f"Choices added to {location}: {num}.")))


def _project(location: str) -> LabelStore:
    """The project that is there, or a new one for chats."""
    try:
        return open_store(location, must_exist=True)
    except DataError:
        # Not there; if it is something else, the line below says so again.
        settings = ProjectSettings(name="chats", annotators_per_pair=1, gold_share=0.0, repeat_share=0.0)
        return open_store(location, settings=settings)
