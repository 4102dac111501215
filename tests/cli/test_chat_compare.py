"""prefloop chat with two models: blind, kept as labels, and told at the end."""

import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Prefloop
from rich.console import Console

from prefloop.cli.chat_compare import BlindComparison, Turn, summary
from prefloop.cli.label_terminal import LineKeys
from prefloop.collection.label_records import ProjectSettings
from prefloop.collection.store import LabelStore, open_store
from prefloop.collection.stored_rows import other_side
from prefloop.errors import ModelError
from prefloop.formulas.intervals import wilson_interval
from prefloop.records import Completion, Message
from toy_recipes import tiny_llama

NAMES = ("runs/demo/sft", "runs/demo/ppo")


class Parrot:
    """Stands in for a conversation: says what it was made with, and remembers as one does."""

    temperature = 0.7
    max_new_tokens = 9

    def __init__(self, says: Sequence[str]) -> None:
        self.says = iter(says)
        self.turns: list[Message] = []
        self.last = Completion("")
        self.commands: list[str] = []

    def prompt(self, line: str) -> tuple[Message, ...]:
        return (*self.turns, Message("user", line))

    def pieces(self, line: str) -> Iterator[str]:
        text = next(self.says)
        if text == "full":
            raise ModelError("the conversation fills the model's context: /reset to begin anew")
        self.last = Completion(text, ended=not text.endswith("..."))
        yield text

    def keep(self, line: str, answer: str) -> None:
        self.turns += [Message("user", line), Message("assistant", answer)]

    def command(self, line: str) -> str:
        self.commands.append(line)
        return f"did {line}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    settings = ProjectSettings(annotators_per_pair=1, gold_share=0.0, repeat_share=0.0)
    with open_store(tmp_path / "chats.db", settings=settings) as made:
        made.add_account("Ben")
        yield made


def compared(
    store: LabelStore,
    typed: str,
    first: Sequence[str],
    second: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    width: int = 100,
) -> tuple[BlindComparison, str]:
    """A sitting in which these lines are typed and these answers given; and what was on the screen."""
    stdin = io.StringIO(typed)
    monkeypatch.setattr(sys, "stdin", stdin)
    screen = io.StringIO()
    talks: Any = (Parrot(first), Parrot(second))
    ticks = iter(range(1000, 9000))
    comparison = BlindComparison(
        talks,
        NAMES,
        store=store,
        annotator="Ben",
        read_key=LineKeys(stdin).read_key,
        console=Console(file=screen, width=width, highlight=False, emoji=False, markup=False),
        clock=lambda: float(next(ticks)),
    )
    comparison.run()
    return comparison, screen.getvalue()


def test_the_label_says_which_model_s_text_was_chosen(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Turn] = []
    show = BlindComparison._show
    monkeypatch.setattr(BlindComparison, "_show", lambda self, turn: (turns.append(turn), show(self, turn))[1])
    num = 24
    comparison, screen = compared(store, "question\n1\n" * num, ["from sft"] * num, ["from ppo"] * num, monkeypatch)
    pairs = {pair.comparison.pair_id: pair.comparison for pair in store.pairs()}
    labels = store.current_labels()
    assert len(pairs) == len(labels) == len(turns) == num
    for turn, label in zip(turns, labels, strict=True):
        pair = pairs[label.pair_id]
        assert (pair.left.source, pair.right.source) == NAMES
        assert (pair.left.text, pair.right.text) == ("from sft", "from ppo")
        chosen = pair.left if label.choice == "left" else pair.right
        assert chosen.text == turn.displayed[0].text
        assert label.displayed_choice == "left"
        assert label.choice == (other_side("left") if turn.swapped else "left")
        assert (label.annotator, label.swapped) == ("Ben", turn.swapped)
        assert label.submitted_at > label.opened_at
    # Sides are drawn for each turn: always the same would happen twice in 16 million.
    assert 0 < sum(turn.swapped for turn in turns) < num
    assert store.check() == []
    # What is told at the end counts the same labels, by model.
    assert comparison.choices == Counter(label.choice for label in labels)
    won = sum(turn.answers[0] is turn.displayed[0] for turn in turns)
    assert f"runs/demo/sft won {won} of {num}" in screen


def test_names_stay_hidden_until_the_end(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _, screen = compared(store, "question\n1\nmore\nt\n", ["a", "b"], ["c", "d"], monkeypatch)
    before, told, after = screen.partition("A tie; answer 1 goes on.")
    assert told
    assert not any(word in before for word in ("sft", "ppo"))
    assert "runs/demo/sft won" in after
    assert "runs/demo/ppo won" in after


@pytest.mark.parametrize("key", ["1", "2", "t", "b", "s"])
def test_the_chosen_answer_goes_on(store: LabelStore, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    turns: list[Turn] = []
    monkeypatch.setattr(BlindComparison, "_show", lambda _, turn: turns.append(turn))
    comparison, _ = compared(store, f"question\n{key}\n", ["sft says"], ["ppo says"], monkeypatch)
    one, other = (answer.text for answer in turns[0].displayed)
    kept = {"1": one, "2": other, "t": one, "s": one}.get(key)
    expected = [] if kept is None else [Message("user", "question"), Message("assistant", kept)]
    assert [talk.turns for talk in comparison.talks] == [expected, expected]
    (label,) = store.current_labels()
    displayed = {"1": "left", "2": "right", "t": "tie", "b": "both_bad", "s": "skip"}[key]
    assert label.displayed_choice == displayed


def test_the_pair_s_prompt_is_the_conversation_so_far(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(store, "first\nb\nsecond\n1\nthird\n1\n", ["a"] * 3, ["c", "d", "e..."], monkeypatch)
    prompts = sorted((pair.comparison.prompt for pair in store.pairs()), key=len)
    assert prompts[:2] == sorted([(Message("user", "first"),), (Message("user", "second"),)], key=str)
    assert len(prompts[2]) == 3
    assert prompts[2][-1] == Message("user", "third")
    last = next(pair.comparison for pair in store.pairs() if pair.comparison.prompt == prompts[2])
    assert (last.left.ended, last.right.ended) == (True, False)
    assert last.details == {"from": "chat", "temperature": 0.7, "max_new_tokens": 9}


def test_the_same_answer_twice_or_an_empty_one_is_no_choice(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, screen = compared(store, "a\nb\nc\n2\n", ["same", "", "x"], ["same", "full of it", "y"], monkeypatch)
    assert screen.count("there is nothing to choose.") == 2
    assert "Nothing to choose (the same answer twice, or an empty one): 2." in screen
    assert len(store.current_labels()) == 1
    assert [turn.content for turn in comparison.talks[0].turns[:4]] == ["a", "same", "b", "full of it"]


def test_commands_reach_both_models_and_errors_stay_in_the_talk(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "/set temperature 0.7\nwhy\nhow\n?\nx\n2\n/quit\nnot asked\n"
    comparison, screen = compared(store, typed, ["full", "a"], ["b", "c"], monkeypatch)
    assert [talk.commands for talk in comparison.talks] == [["/set temperature 0.7"]] * 2  # type: ignore[attr-defined]
    assert "(the conversation fills the model's context: /reset to begin anew)" in screen
    assert screen.count("1 or 2 is better") == 2  # Once for the turn, once for the question mark.
    assert len(store.current_labels()) == 1


def test_who_leaves_before_choosing_leaves_nothing(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _, screen = compared(store, "a\n", ["x"], ["y"], monkeypatch)
    assert store.pairs() == []
    assert "runs/demo/sft and runs/demo/ppo: no choice was made." in screen


@pytest.mark.parametrize("width", [60, 100])
def test_answers_are_shown_as_plain_text(store: LabelStore, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    _, screen = compared(store, "a\n1\n", ["x\x1b[2J"], ["y..."], monkeypatch, width=width)
    assert "x\u241b[2J" in screen
    assert "\x1b" not in screen
    assert "(cut at the length limit)" in screen
    assert ("Answer 1" in screen and "Answer 2" in screen) is True
    line = next(line for line in screen.splitlines() if "Answer 1" in line)
    assert ("Answer 2" in line) == (width == 100)


def test_the_summary_by_hand() -> None:
    counted = Counter({"left": 5, "right": 2, "tie": 1, "both_bad": 2, "skip": 3})
    lines = summary(("A", "B"), counted, num_without_choice=1)  # type: ignore[arg-type]
    low, high = wilson_interval(6.5, 10)
    assert (round(low, 2), round(high, 2)) == (0.35, 0.86)  # (6.5 + 1.92) / 13.84 = 0.61, give or take 0.26
    assert lines == [
        "A won 5 of 10: 65%, 95 % interval 35% to 86%",
        "B won 2 of 10: 35%, 95 % interval 14% to 65%",
        "Ties: 1, both bad: 2; each counts one half for both.",
        "Skipped, and not counted: 3.",
        "Nothing to choose (the same answer twice, or an empty one): 1.",
    ]


def test_from_the_command_line(prefloop: Prefloop, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    options = ("--max-new-tokens", "12", "--temperature", "1", "--no-history")
    typed = "a fine\n1\na dull\n2\n"
    done = prefloop("chat", folder, folder, *options, "--store", "kept.db", "--name", "Ada", typed=typed)
    assert (done.code, done.err) == (0, "")
    assert "Choices added to kept.db: 2." in done.out
    assert done.out.count(str(folder)) == 2
    with open_store(tmp_path / "kept.db", must_exist=True) as kept:
        assert [label.annotator for label in kept.current_labels()] == ["Ada", "Ada"]
        assert [account.name for account in kept.accounts() if account.active] == ["Ada"]
        assert [len(pair.comparison.prompt) for pair in kept.pairs()] == [1, 1]
        assert kept.settings.annotators_per_pair == 1
        assert kept.check() == []
    # The project that is there is gone on with, and the default is a file of its own.
    again = prefloop("chat", folder, folder, *options, "--store", "kept.db", typed="a\n2\n")
    assert again.code == 0
    prefloop("chat", folder, folder, *options, typed="a\n2\n")
    with open_store(tmp_path / "kept.db", must_exist=True) as kept, open_store(tmp_path / "chats.db") as chats:
        assert (len(kept.current_labels()), len(chats.current_labels())) == (3, 1)
