"""Labelling in a terminal: the page's keys, the same store, and no text that commands the terminal."""

import io
import os
import pty
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from prefloop.cli.label_terminal import (
    SIDE_BY_SIDE_COLUMNS,
    LabelTerminal,
    LineKeys,
    TerminalKeys,
    label_in_terminal,
    plain,
)
from prefloop.collection.label_records import ProjectSettings, StoredPair
from prefloop.collection.store import LabelStore, open_store
from prefloop.errors import DataError
from prefloop.records import Comparison, Completion, Message


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    settings = ProjectSettings(
        name="Demo", guidelines="Read both.", annotators_per_pair=1, gold_share=0, repeat_share=0
    )
    with open_store(tmp_path / "labels.sqlite", settings=settings) as made:
        made.add_pairs(
            [
                StoredPair(
                    Comparison(f"{number}", f"prompt {number}", Completion(f"x{number}"), Completion(f"y{number}"))
                )
                for number in range(6)
            ]
        )
        made.add_account("Ben")
        yield made


def sitting(store: LabelStore, typed: str, *, width: int = 120) -> tuple[int, str]:
    """What a person who types these lines adds, and sees."""
    screen = io.StringIO()
    console = Console(file=screen, width=width, highlight=False, emoji=False, markup=False)
    ticks = iter(range(1000, 2000))
    terminal = LabelTerminal(
        store, "Ben", keys=LineKeys(io.StringIO(typed)), console=console, clock=lambda: float(next(ticks))
    )
    return terminal.run(), screen.getvalue()


def displayed(store: LabelStore) -> list[str | None]:
    return [label.displayed_choice for label in store.current_labels()]


def test_every_key_says_what_the_page_s_key_says(store: LabelStore) -> None:
    num, screen = sitting(store, "1\nright\n3\nb\ns\nleft\nq\n")
    assert num == 6
    assert displayed(store) == ["left", "right", "tie", "both_bad", "skip", "left"]
    assert "Stored: A is better." in screen
    assert "All done" in screen
    assert all(label.client_version.startswith("terminal ") for label in store.current_labels())


def test_what_is_chosen_is_the_text_that_stood_there(store: LabelStore) -> None:
    (task,) = store.next_tasks("Ben", num=1)
    sitting(store, "2\nq\n")
    (label,) = store.current_labels()
    (pair,) = [pair.comparison for pair in store.pairs() if pair.comparison.pair_id == label.pair_id]
    chosen = pair.left if label.choice == "left" else pair.right
    assert chosen.text == task.displayed_right


def test_strength_rationale_and_undo(store: LabelStore) -> None:
    typed = "+\n+\nr\nB is shorter \x1b[2J\n2\n!\n@\n#\n$\nt\nu\nu\n1\nq\n"
    num, screen = sitting(store, typed)
    assert num == 1
    (label,) = store.current_labels()
    assert (label.strength, label.rationale, label.displayed_choice) == (2, "B is shorter \x1b[2J", "left")
    assert label.submitted_at > label.opened_at
    assert [event.event for event in store.events()] == ["label", "label", "undo", "undo", "label"]
    tie = store.events()[1]
    assert (tie.strength, tie.rationale) == (None, "")
    assert "How much better: clearly" in screen
    assert "Taken back. You had said: a tie." in screen
    assert "Why: B is shorter \u241b[2J" in screen


def test_nothing_to_undo_unknown_keys_and_help(store: LabelStore) -> None:
    num, screen = sitting(store, "u\n\nx\n?\n5\n")
    assert num == 0
    assert "no label to take back" in screen
    assert "answer A is better" in screen
    assert store.events() == []


def test_who_leaves_by_the_end_of_input_loses_nothing(store: LabelStore) -> None:
    assert sitting(store, "1\n1\n")[0] == 2
    assert len(store.current_labels()) == 2


def test_after_the_last_pair_one_can_look_again_or_take_back(store: LabelStore) -> None:
    num, screen = sitting(store, "1\n" * 6 + "\nu\n2\nq\n")
    assert num == 6
    assert displayed(store)[-1] == "right"
    assert screen.count("All done") == 3
    store.add_account("Ada")
    assert store.own_progress("Ben").num_left == 0


def test_when_others_hold_the_rest_it_says_so(store: LabelStore) -> None:
    store.add_account("Ada")
    store.next_tasks("Ada", num=6)
    assert "others are answering" in sitting(store, "q\n")[1]


def test_a_label_that_is_not_needed_any_more_is_refused_plainly(store: LabelStore) -> None:
    store.next_tasks("Ben", num=1, now=0.0)
    store.add_account("Ada")
    screen = io.StringIO()
    terminal = LabelTerminal(store, "Ben", keys=LineKeys(io.StringIO("q\n")), console=Console(file=screen, width=120))
    shown = terminal._next("")
    assert shown is not None
    for _ in range(6):
        (task,) = store.next_tasks("Ada", num=1, now=4e9)
        body = {"submission_id": f"of-{task.task_id}", "task_id": task.task_id, "choice": "tie"}
        store.submit("Ada", _submission(body), now=4e9)
    terminal._act(shown, "1")
    assert "needs no further label" in screen.getvalue()
    assert terminal.num_here == 0


def _submission(body: dict[str, str]):
    from prefloop.collection.label_records import Submission

    return Submission.model_validate({**body, "opened_at": 1.0, "submitted_at": 2.0})


def test_answers_stand_side_by_side_where_there_is_room(store: LabelStore) -> None:
    def line_of(letter: str, screen: str) -> int:
        return next(number for number, line in enumerate(screen.splitlines()) if f"Answer {letter}" in line)

    wide, narrow = (sitting(store, "q\n", width=width)[1] for width in (SIDE_BY_SIDE_COLUMNS, SIDE_BY_SIDE_COLUMNS - 1))
    assert line_of("A", wide) == line_of("B", wide)
    assert line_of("A", narrow) < line_of("B", narrow)
    assert "Read both." in wide
    assert "0 done, 6 left" in wide


def test_turns_and_cut_answers_are_shown(store: LabelStore) -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Why?"))
    with open_store(Path(store.location).with_name("other.sqlite")) as other:
        other.add_account("Ben")
        other.add_pairs([StoredPair(Comparison("a", prompt, Completion("x", ended=False), Completion("y")))])
        screen = sitting(other, "q\n")[1]
    assert screen.index("system") < screen.index("Be brief.") < screen.index("user") < screen.index("Why?")
    assert screen.count("(cut at the length limit)") == 1


def test_text_cannot_command_the_terminal(store: LabelStore) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 [bold]no markup[/bold] :smile: \x9b31m \r\x08\x7f \u202egnp.exe \u2028"
    with open_store(Path(store.location).with_name("other.sqlite")) as other:
        other.update_settings(other.settings.model_copy(update={"name": hostile, "guidelines": hostile}))
        other.add_account("Ben")
        other.add_pairs([StoredPair(Comparison("a", hostile, Completion(hostile + "1"), Completion(hostile + "2")))])
        screen = sitting(other, "1\nq\n")[1]
    assert not set(screen) & {
        *map(chr, range(10)),
        *map(chr, range(11, 32)),
        *map(chr, range(127, 160)),
        "\u202e",
        "\u2028",
    }
    assert screen.count("[bold]no markup[/bold] :smile:") == 5
    assert "\u241b[2J" in screen
    assert "<U+202E>gnp.exe" in screen


def test_plain_keeps_what_is_harmless() -> None:
    harmless = "Zeile 1\n\tZeile 2 \u05e9\u05dc\u05d5\u05dd \u4e2d\u6587 \U0001f468\u200d\U0001f469 \u0646\u200c\u0645"
    assert plain(harmless) == harmless
    assert plain("\x00\x1b\x7f\x85\u200b\u2066\ufeff\ud800") == (
        "\u2400\u241b\u2421<U+0085><U+200B><U+2066><U+FEFF><U+D800>"
    )


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: where a person types, and where the program reads."""
    person, program = pty.openpty()
    yield person, program
    os.close(person)
    os.close(program)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        (b"1", "1"),
        (b"T", "t"),
        (b"\x1b[D", "left"),
        (b"\x1bOC", "right"),
        (b"\x1b[1;2C", "escape"),
        (b"\x1b", "escape"),
        (b"\x7f", "backspace"),
        ("\u00e4".encode(), "\u00e4"),
        ("\U0001f600".encode(), "\U0001f600"),
        (b"\n", "\n"),
    ],
)
def test_a_terminal_gives_single_keys(terminal: tuple[int, int], typed: bytes, key: str) -> None:
    person, program = terminal
    with TerminalKeys(program) as keys:
        os.write(person, typed + b"z")
        if typed == b"\x1b":
            assert keys.read_key() == "escape"
        else:
            assert [keys.read_key(), keys.read_key()] == [key, "z"]


def test_a_terminal_is_as_before_afterwards_and_lines_end_with_enter(terminal: tuple[int, int]) -> None:
    person, program = terminal
    before = termios.tcgetattr(program)
    with TerminalKeys(program) as keys:
        assert termios.tcgetattr(program)[3] != before[3]
        os.write(person, "so \u00fcber\n".encode())
        assert keys.read_line() == "so \u00fcber"
        os.write(person, b"\x04")
        with pytest.raises(EOFError):
            keys.read_key()
    assert termios.tcgetattr(program) == before


def test_labelling_at_a_real_terminal(
    store: LabelStore, capsys: pytest.CaptureFixture[str], terminal: tuple[int, int]
) -> None:
    person, program = terminal

    def type_once_single_keys_are_read() -> None:
        while termios.tcgetattr(program)[3] & termios.ICANON:
            time.sleep(0.01)
        os.write(person, b"1\x1b[Ct\x7fbq")

    typist = threading.Thread(target=type_once_single_keys_are_read, daemon=True)
    with open(program, encoding="utf-8", closefd=False) as stdin:
        typist.start()
        assert label_in_terminal(store, "Ben", stdin=stdin) == 3
    assert displayed(store) == ["left", "right", "both_bad"]
    assert "Answer A" in capsys.readouterr().out


def test_lines_do_where_there_is_no_terminal_and_strangers_are_refused(store: LabelStore) -> None:
    assert label_in_terminal(store, "Ben", stdin=io.StringIO("3\nq\n")) == 1
    with pytest.raises(DataError, match="no account called 'Nobody'"):
        label_in_terminal(store, "Nobody", stdin=sys.stdin)
