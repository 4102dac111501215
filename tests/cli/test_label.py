"""prefloop label and collect, as a person types them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from command_line import Prefloop, Whole

from prefloop.collection.store import open_store

LIGHT = """
import sys
from prefloop.cli.main import app
import prefloop.collection.store, prefloop.web.label_server
heavy = {"torch", "transformers", "matplotlib", "sklearn", "pandas", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""


def long_file(folder: Path, *, num_pairs: int = 6) -> Path:
    """Three people on each pair; the third one often disagrees."""
    rows = []
    for number in range(num_pairs):
        for person in ("Ada", "Ben", "Cy"):
            choice = "right" if person == "Cy" and number % 2 else "left"
            rows.append(
                {
                    "pair_id": f"p{number}",
                    "prompt": f"Question {number}?",
                    "left": f"A good answer to {number}.",
                    "right": f"A poor one to {number}.",
                    "annotator": person,
                    "choice": choice,
                }
            )
    file = folder / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_import_stats_export_check_and_backup(prefloop: Prefloop, tmp_path: Path) -> None:
    done = prefloop("label", "import", long_file(tmp_path))
    assert done.code == 0, done.err
    assert "6 pairs and 18 labels added to labels.db" in done.out
    assert prefloop("label", "import", tmp_path / "labels.jsonl").out.count("6 pairs were there") == 1

    shown = prefloop("label", "stats")
    assert shown.code == 0
    assert "18 labels by 3 annotators" in shown.out
    figures = json.loads(prefloop("label", "stats", "--json").out)
    # Three pairs of all three, three pairs with one in three ways of pairing two people that agrees.
    assert figures["agreement"]["percent_agreement"]["value"] == pytest.approx((3 * 1 + 3 / 3) / 6)

    done = prefloop("label", "export", "out", "--validation-share", "0", "--test-share", "0")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert {row["chosen"] for row in rows} == {f"A good answer to {number}." for number in range(6)}
    assert prefloop("label", "check").out.startswith("labels.db is sound")
    assert prefloop("label", "backup", "copy.db").code == 0
    assert prefloop("label", "check", "copy.db").code == 0


def test_statistics_of_a_file_need_no_project(prefloop: Prefloop, tmp_path: Path) -> None:
    done = prefloop("label", "stats", "--file", long_file(tmp_path))
    assert done.code == 0, done.err
    assert "Fleiss' kappa" in done.out
    assert not (tmp_path / "labels.db").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("label", "serve", "nowhere.db"), 1, "There is no label store"),
        (("label", "stats", "nowhere.db"), 1, "There is no label store"),
        (("label", "import", "nowhere.jsonl"), 1, "no file"),
        (("label", "settings", "new.db", "annotators_per_par=2"), 2, "annotators_per_pair"),
        (("label", "settings", "new.db", "random_share=0.1"), 2, "random_share"),
        (("label", "import", "labels.jsonl", "--choice", "zero"), 2, "is no assignment"),
        (("label", "import", "labels.jsonl", "--form", "exel"), 2, "exel"),
        (("label", "export", "out", "--store", "new.db", "--aggregation", "mean"), 2, "mean"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    prefloop: Prefloop, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    long_file(tmp_path)
    assert prefloop("label", "settings", "new.db").code == 1, "looking at what is not there makes nothing"
    assert not (tmp_path / "new.db").exists()
    assert prefloop("label", "settings", "new.db", "annotators_per_pair=2").code == 0
    done = prefloop(*arguments)
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_bad_row_is_named_and_nothing_is_half_imported(prefloop: Prefloop, tmp_path: Path) -> None:
    file = long_file(tmp_path)
    with file.open("a", encoding="utf-8") as more:
        more.write(
            json.dumps({"pair_id": "p9", "prompt": "?", "left": "same", "right": "same ", "annotator": "A"}) + "\n"
        )
    done = prefloop("label", "import", file)
    assert done.code == 1
    assert "labels.jsonl:19" in done.err
    assert not (tmp_path / "labels.db").exists()


def test_settings_are_shown_and_changed(prefloop: Prefloop, tmp_path: Path) -> None:
    (tmp_path / "guide.txt").write_text("Be kind.", encoding="utf-8")
    done = prefloop("label", "settings", "labels.db", "annotators_per_pair=2", "--guidelines", "guide.txt")
    assert done.code == 0, done.err
    with open_store("labels.db", must_exist=True) as store:
        assert (store.settings.annotators_per_pair, store.settings.guidelines) == (2, "Be kind.")


def test_people_come_and_go(prefloop: Prefloop) -> None:
    prefloop("label", "settings", "labels.db", "annotators_per_pair=2")
    first = prefloop("label", "person", "Ada", "--admin")
    assert "/join/" in first.out
    assert prefloop("label", "person", "ada ").code == 1, "names are the same but for case and spaces"
    second = prefloop("label", "person", "Ada", "--new-link")
    assert second.out != first.out
    assert prefloop("label", "person", "Ada", "--remove").code == 0
    with open_store("labels.db", must_exist=True) as store:
        assert [(one.name, one.role, one.active) for one in store.accounts()] == [("Ada", "admin", False)]


def test_pairs_are_collected_from_a_model_and_labelled_in_the_terminal(prefloop: Prefloop, whole: Whole) -> None:
    done = prefloop(
        *("collect", whole.folder / "world" / "prompts.jsonl", "--model", whole.folder / "sft", "--num-pairs", "3"),
        *("--max-new-tokens", "12", "--reward-model", whole.folder / "reward", "--output", "pairs", "--quiet"),
    )
    assert done.code == 0, done.err
    with open_store("labels.db", must_exist=True) as store:
        pairs = store.pairs()
        assert store.settings.order == "margin"
        assert pairs
        assert all(pair.margin is not None for pair in pairs)
    done = prefloop("label", "terminal", "labels.db", "--name", "Ada", typed="1\n")
    assert done.code == 0, done.err
    with open_store("labels.db", must_exist=True) as store:
        assert [(one.annotator, one.displayed_choice) for one in store.current_labels()] == [("Ada", "left")]


def test_nothing_heavy_is_loaded_to_serve() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_server_is_up_soon_and_stops_in_order(tmp_path: Path) -> None:
    with open_store(tmp_path / "labels.db") as store:
        token = store.add_account("me", role="admin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefloop.cli.main", "label", "serve", "labels.db", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--no-browser"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    assert json.load(answer) == {"ok": True}
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        server.send_signal(signal.SIGINT)
        out, _ = server.communicate(timeout=20)
    finally:
        server.kill()
    assert "The label page is at" in out
    assert "Stopped. 0 of 0 labels are stored." in out
    assert server.returncode == 0
    # The link that was there before has given way to the one that was printed.
    with open_store(tmp_path / "labels.db") as store:
        assert store.account_of_link(token) is None
