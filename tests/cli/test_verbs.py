"""The verbs that look at data, models and folders: data, score, evaluate, report."""

import json
import re
from pathlib import Path

import pytest
from command_line import Prefloop, Whole

from toy_recipes import sst2_folder, tiny_llama


class TestScore:
    def test_responses_are_ranked_best_first(self, whole: Whole, prefloop: Prefloop) -> None:
        answers = ["Dunno.", "Of course! Here is how.", "No\nidea"]
        options = [part for answer in answers for part in ("--response", answer)]
        done = prefloop("score", whole.folder / "reward", "--prompt", "How do I tie a knot?", *options)
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        scores = [float(line.split()[0]) for line in lines]
        assert scores == sorted(scores, reverse=True)
        assert sorted(line.split(maxsplit=1)[1] for line in lines) == sorted(map(repr, answers))
        done = prefloop("score", whole.folder / "reward", "--prompt", "How?", "--response", "x" * 300)
        assert done.code == 0
        assert "warning: 1 of 1 texts were longer than the reward model's 160 positions and were cut" in done.err

    def test_a_file_is_scored_as_json_with_the_same_scores(self, whole: Whole, prefloop: Prefloop) -> None:
        rows = [{"prompt": "How?", "completion": "Dunno."}, {"prompt": "Why?", "completion": "Because."}]
        Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = prefloop("score", whole.folder / "reward", "answers.jsonl", "--json")
        assert done.code == 0
        found = [json.loads(line) for line in done.out.splitlines()]
        assert {(one["prompt"], one["completion"]) for one in found} == {("How?", "Dunno."), ("Why?", "Because.")}
        alone = prefloop("score", whole.folder / "reward", "--prompt", "How?", "--response", "Dunno.", "--json")
        (score,) = [one["score"] for one in found if one["prompt"] == "How?"]
        assert json.loads(alone.out)["score"] == pytest.approx(score, abs=1e-6)

    def test_a_language_model_is_no_reward_model(self, whole: Whole, prefloop: Prefloop) -> None:
        done = prefloop("score", whole.folder / "sft", "--prompt", "How?", "--response", "So.")
        assert done.code == 1
        assert "labels; a reward model has exactly one" in done.err


class TestData:
    def test_what_is_used_and_dropped(self, prefloop: Prefloop) -> None:
        rows = [("How?", "Like this."), ("How?", "Like this."), ("Why?", " ")]
        lines = [json.dumps({"question": prompt, "completion": completion}) for prompt, completion in rows]
        Path("rows.jsonl").write_text("\n".join(lines) + "\n")
        done = prefloop("data", "rows.jsonl", "--kind", "demonstrations", "--column", "prompt=question")
        assert (done.code, done.err) == (0, "")
        assert "3 rows read, 1 usable, 2 dropped" in done.out
        assert done.out.count("  dropped 1: ") == 2
        assert "the first row, rows.jsonl:1:\n  prompt: How?\n  completion: Like this.\n" in done.out

    def test_with_a_model_it_counts_tokens_and_shows_the_mask(self, prefloop: Prefloop, tmp_path: Path) -> None:
        data, model = sst2_folder(tmp_path / "sst2"), tiny_llama(tmp_path / "llama")
        done = prefloop("data", data, "--kind", "labelled", "--model", model, "--split", "dev", "--limit", "10")
        assert (done.code, done.err) == (0, "")
        assert done.out.count("10 rows read, 10 used, 0 dropped") == 1
        assert re.search(r"\d+ tokens, [\d.]+% of them supervised", done.out)
        assert "«a clumsy film of 60 minutes<|end|>»" in done.out

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("nowhere.jsonl", "There is no file or folder nowhere.jsonl"),
            ("bad.jsonl", "bad.jsonl:2"),
            ("empty.jsonl", "empty.jsonl holds no rows"),
        ],
    )
    def test_a_source_that_cannot_be_read_is_exit_code_1(self, prefloop: Prefloop, source: str, words: str) -> None:
        Path("bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
        Path("empty.jsonl").touch()
        done = prefloop("data", source, "--kind", "text")
        assert done.code == 1
        assert words in done.err


class TestEvaluate:
    def test_policies_stand_side_by_side(self, whole: Whole, prefloop: Prefloop) -> None:
        models = [whole.folder / "sft", whole.folder / "ppo" / "final"]
        options = ["--reward-model", whole.folder / "reward", "--best-of-n", "2", "--num-samples", "4"]
        prompts = ["--prompts", whole.folder / "world" / "held_out.jsonl", "--max-new-tokens", "8"]
        done = prefloop("evaluate", *models, *options, *prompts, "--output", "figures")
        assert done.code == 0, done.err
        assert all(name in done.out for name in ("1_sft", "2_ppo", "best_of_n"))
        assert Path("figures/report.html").exists()
        summary = json.loads(Path("figures/summary.json").read_text())
        assert summary["policies"]["1_sft"]["kl_from_reference"] == 0.0

    def test_a_classifier_can_judge_texts_from_the_start_token(self, prefloop: Prefloop, tmp_path: Path) -> None:
        data, model = sst2_folder(tmp_path / "sst2"), tiny_llama(tmp_path / "llama")
        judge = ["--judge-train", data / "train.csv", "--judge-test", data / "dev.csv.gz"]
        done = prefloop("evaluate", model, *judge, "--num-samples", "4", "--max-new-tokens", "6", "--output", "figures")
        assert done.code == 0, done.err
        assert "a TF-IDF classifier: 100.0 % right on 20 texts" in done.out

    def test_what_does_not_fit_is_said_before_anything_is_written(self, whole: Whole, prefloop: Prefloop) -> None:
        done = prefloop("evaluate", whole.folder / "sft", "--prompts", "nowhere.jsonl", "--best-of-n", "2")
        assert done.code == 2
        assert "policies.prompts: there is no file or folder nowhere.jsonl" in done.err
        assert "best_of_n needs a reward_model" in done.err
        assert not Path("runs").exists()

    def test_the_rubric_only_judges_the_embedded_world(self, whole: Whole, prefloop: Prefloop) -> None:
        Path("prompts.jsonl").write_text('{"prompt": "What is love?"}\n')
        options = ["--prompts", "prompts.jsonl", "--num-samples", "2", "--max-new-tokens", "4"]
        done = prefloop("evaluate", whole.folder / "sft", *options)
        assert done.code == 1
        assert "stage policies: " in done.err
        assert "What is love?" in done.err


class TestReport:
    def test_it_is_rendered_again_and_opened_when_asked(
        self, whole: Whole, prefloop: Prefloop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[str] = []
        monkeypatch.setattr("webbrowser.open", opened.append)
        done = prefloop("report", whole.folder)
        assert (done.code, done.out, opened) == (0, f"{whole.folder}/report.html\n", [])
        done = prefloop("report", whole.folder / "ppo", "--open")
        assert (done.code, done.out) == (0, f"{whole.folder}/ppo/report.html\n")
        assert opened == [f"file://{whole.folder}/ppo/report.html"]

    def test_a_folder_without_a_run(self, prefloop: Prefloop) -> None:
        done = prefloop("report", ".")
        assert done.code == 1
        assert "is neither a run nor a pipeline" in done.err
