"""prefloop chat: what can be typed, and which folders can be talked to."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Prefloop, Whole

from prefloop.cli.conversation import HELP
from prefloop.rollouts.streamed_text import StreamedText
from toy_recipes import tiny_llama

TYPED = (
    "How do I tie a knot?\n/set temperature 0\n/set nonsense\n/set length 0\n/odd\n\n"
    "/reset\n/help\nHow?\n/reset\nHow?\n"
)


def test_a_conversation_streams_and_ends_with_the_input(whole: Whole, prefloop: Prefloop) -> None:
    done = prefloop("chat", whole.folder / "ppo", "--max-new-tokens", "5", typed=TYPED)
    assert (done.code, done.err) == (0, "")
    said = done.out.split("you> ")
    assert said[0].startswith(f"{whole.folder}/ppo: ask it something.")
    assert said[1].strip()
    assert said[2] == "temperature is 0\n"
    assert said[3].startswith("'nonsense' cannot be set; try /set temperature 0.7")
    assert said[4].startswith("'length 0' cannot be set")
    assert said[5] == f"there is no /odd; what there is:\n{HELP}\n"
    assert (said[6], said[7], said[8]) == ("", "forgotten\n", HELP + "\n")
    assert said[9] == said[11], "what was said before was forgotten"
    assert said[12] == "\n"


def test_greedy_answers_do_not_depend_on_the_seed_and_sampled_ones_do(whole: Whole, prefloop: Prefloop) -> None:
    def answer(*options: str) -> str:
        return prefloop("chat", whole.folder / "sft", "--max-new-tokens", "8", *options, typed="How?\n/quit\n").out

    assert answer("--temperature", "0", "--seed", "1") == answer("--temperature", "0", "--seed", "2")
    assert answer("--temperature", "1", "--seed", "1") == answer("--temperature", "1", "--seed", "1")
    assert answer("--temperature", "1", "--seed", "1") != answer("--temperature", "1", "--seed", "2")


def test_history_fills_the_context_and_reset_empties_it(whole: Whole, prefloop: Prefloop) -> None:
    typed = "How do I tie a knot, please?\n" * 9 + "/reset\nHow?\n"
    options = ("--max-new-tokens", "40", "--temperature", "0")
    done = prefloop("chat", whole.folder / "sft", *options, typed=typed)
    assert done.code == 0
    said = done.out.split("you> ")
    assert "fills the model's context: /reset" in said[9]
    assert "fills the model's context" not in said[11]
    alone = prefloop("chat", whole.folder / "sft", *options, "--no-history", typed=typed).out
    assert "fills" not in alone
    assert len(set(alone.split("you> ")[1:10])) == 1
    switched = prefloop("chat", whole.folder / "sft", *options, typed="/set history off\n" + typed).out
    assert switched.split("you> ")[2:] == alone.split("you> ")[1:]


def test_a_model_folder_from_elsewhere_can_be_talked_to(prefloop: Prefloop, tmp_path: Path) -> None:
    done = prefloop("chat", tiny_llama(tmp_path / "llama"), "--max-new-tokens", "4", typed="a fine film\n")
    assert (done.code, done.err) == (0, "")


def test_what_cannot_be_talked_to_says_what_can(whole: Whole, prefloop: Prefloop, tmp_path: Path) -> None:
    done = prefloop("chat", whole.folder)
    assert done.code == 1
    assert f"is a whole pipeline: name one of its models, {whole.folder}/dpo, {whole.folder}/ppo" in done.err
    done = prefloop("chat", whole.folder / "world")
    assert done.code == 1
    assert "is a run of kind world, which leaves no model" in done.err
    done = prefloop("chat", whole.folder / "reward")
    assert done.code == 1
    assert "is a reward model: give a language model" in done.err
    begun = Path(shutil.copytree(whole.folder / "sft", tmp_path / "begun"))
    record = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    done = prefloop("chat", begun)
    assert done.code == 1
    assert "begun is interrupted and not finished, so it has no model yet" in done.err


def test_too_many_models_and_a_store_for_one_are_refused(prefloop: Prefloop) -> None:
    done = prefloop("chat", "one", "two", "three")
    assert (done.code, done.out) == (2, "")
    assert "3 models were given; talk to one, or compare two" in done.err
    done = prefloop("chat", "one", "--store", "chats.db")
    assert done.code == 2
    assert "--store keeps choices between two models" in done.err


def test_the_temperature_that_is_set_is_the_one_used(prefloop: Prefloop, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")

    def answers(typed: str, *options: str) -> list[str]:
        return prefloop("chat", folder, "--max-new-tokens", "20", *options, typed=typed).out.split("you> ")[1:]

    set_to = answers("/set temperature 0.7\na fine\n", "--temperature", "1.5")
    assert set_to[0] == "temperature is 0.7\n"
    assert set_to[1] == answers("a fine\n", "--temperature", "0.7")[0]
    assert set_to[1] != answers("a fine\n", "--temperature", "1.5")[0]


def test_a_model_cannot_command_the_terminal(
    prefloop: Prefloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedText, "push", lambda *_: "\x1b[2J")
    monkeypatch.setattr(StreamedText, "finish", lambda *_: "")
    done = prefloop("chat", tiny_llama(tmp_path / "llama"), "--max-new-tokens", "1", typed="a\n")
    assert "\u241b[2J" in done.out
    assert "\x1b" not in done.out
