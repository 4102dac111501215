"""prefloop run, quickstart and recipes: what is printed, refused and written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import Prefloop, Whole

from prefloop.cli.recipes import recipe_path, shipped_recipes
from prefloop.cli.shown import before_and_after, decimals, figures, percent, policy_table
from prefloop.errors import SettingsError
from toy_recipes import sst2_folder, tiny_llama, tutorials, world_and_sft, write_recipe


def test_a_run_prints_figures_table_report_and_what_comes_next(whole: Whole) -> None:
    assert whole.code == 0, whole.err
    assert "choices: 12 pairs, 3 annotators each, agreement" in whole.out
    assert "reward model: orders" in whole.out
    assert "On the same 6 prompts ppo succeeds" in whole.out
    assert re.search(r"best_of_n .* ≤ 0\.19", whole.out)
    assert whole.out.endswith(f"The report: {whole.folder}/report.html\nNext:\n  prefloop chat {whole.folder}/ppo\n")
    assert (whole.folder / "report.html").stat().st_size > 10_000


def test_progress_is_few_readable_lines_and_nothing_of_the_libraries(whole: Whole) -> None:
    lines = whole.err.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        f"[{number}/9] {name} ({stage['kind']}): to do"
        for number, (name, stage) in enumerate(tutorials()["stages"].items(), start=1)
    ]
    assert len(lines) < 60
    assert not re.search(r"it/s|Loading weights|Writing|UserWarning|FutureWarning|Some weights", whole.err)


def test_a_second_run_says_that_everything_is_done(whole: Whole, prefloop: Prefloop) -> None:
    done = prefloop("run", whole.recipe, "--output", whole.folder)
    assert done.code == 0
    assert [line.rpartition(": ")[2] for line in done.err.splitlines()] == ["done already"] * 9
    assert done.out == whole.out


def test_quiet_leaves_the_result_only(prefloop: Prefloop, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", world_and_sft())
    done = prefloop("run", recipe, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "everything is in runs/toy" in done.out


def test_a_dry_run_shows_plan_and_settings_and_writes_nothing(prefloop: Prefloop, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tutorials())
    done = prefloop("run", recipe, "stages.ppo.training.num_steps=7", "--dry-run")
    assert done.code == 0
    assert " 7. ppo            ppo                to do  (from sft, reward, world)" in done.out
    assert "num_steps: 7" in done.out
    assert list(tmp_path.iterdir()) == [recipe]
    assert prefloop("quickstart", "--dry-run", "--seed", "5").out.count("\nseed: 5\n") == 1
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_dry_run_of_what_is_there_says_what_would_be_done_again(whole: Whole, prefloop: Prefloop) -> None:
    done = prefloop("run", whole.recipe, "stages.dpo.seed=8", "--output", whole.folder, "--dry-run")
    actions = dict(re.findall(r"^ ?\d+\. (\S+) +\S+ +(.*?)(?:  \(from|$)", done.out, flags=re.MULTILINE))
    assert actions["dpo"] == "to do again, because seed was None and is 8"
    assert actions["policies"] == "to do again, because dpo is made again"
    assert actions["ppo"] == "done already"


def test_every_wrong_setting_is_named_at_once_with_the_nearest_key(prefloop: Prefloop) -> None:
    done = prefloop("run", "tutorials", "sed=1", "stages.sft.trainin=3", "stages.ppo.training.num_steps=many")
    assert done.code == 2
    assert "has 3 settings that cannot be used" in done.err
    assert "sed: unknown setting; did you mean `seed`?" in done.err
    assert "stages.sft.trainin: unknown setting; did you mean `training`?" in done.err
    assert 'stages.ppo.training.num_steps: "many" was given; allowed: a valid integer' in done.err


def test_a_yaml_that_cannot_be_read_names_file_and_line(prefloop: Prefloop, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: a\nstages: {x: [\n")
    done = prefloop("run", "bad.yaml")
    assert done.code == 2
    assert "bad.yaml:3" in done.err


@pytest.mark.usefixtures("offline")
class TestInputs:
    """Files, models and data that are not there, or not as they should be."""

    def recipe(self, folder: Path, **changes: Any) -> Path:
        """One sft stage on a file of demonstrations."""
        stage = {"kind": "sft", "train": ["rows.jsonl"], "max_length": 48, "model": "llama"} | changes
        (folder / "rows.jsonl").touch()
        return write_recipe(folder / "recipe.yaml", {"name": "toy", "stages": {"sft": stage}})

    def rows(self, folder: Path, *lines: str) -> None:
        (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def test_a_missing_file(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path, train=["missing.jsonl"])
        tiny_llama(tmp_path / "llama")
        done = prefloop("run", recipe)
        assert done.code == 2
        assert "sft.train: there is no file or folder missing.jsonl; give an existing path" in done.err
        assert not (tmp_path / "runs").exists()

    def test_a_malformed_row_is_named_by_file_and_line(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path)
        tiny_llama(tmp_path / "llama")
        self.rows(tmp_path, '{"prompt": "a", "completion": "b"}', '{"prompt": "a", "completion": 3}')
        done = prefloop("run", recipe)
        assert done.code == 1
        assert "stage sft: " in done.err
        assert "rows.jsonl:2" in done.err

    def test_an_empty_file(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path)
        tiny_llama(tmp_path / "llama")
        done = prefloop("run", recipe)
        assert done.code == 1
        assert "rows.jsonl holds no rows" in done.err

    def test_a_model_that_the_hub_does_not_give(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path, model="nobody/nothing")
        done = prefloop("run", recipe)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "'nobody/nothing'" in done.err
        assert "model=path/to/folder" in done.err

    def test_data_that_the_hub_does_not_give(self, prefloop: Prefloop, tmp_path: Path) -> None:
        stages = {"data": {"kind": "prepare", "records": "text"}}
        recipe = write_recipe(tmp_path / "recipe.yaml", {"name": "toy", "data": "nobody/nothing", "stages": stages})
        done = prefloop("run", recipe, "--quiet")
        assert done.code == 1
        assert "The Hub data set 'nobody/nothing' (split train) could not be loaded" in done.err
        assert "data=PATH" in done.err

    def test_a_model_without_an_end_token(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path)
        tiny_llama(tmp_path / "llama", end_token=False)
        done = prefloop("run", recipe)
        assert done.code == 1
        assert "has no end-of-sequence token" in done.err
        assert "eos_token" in done.err

    def test_max_length_beyond_the_models_positions(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path, max_length=65)
        tiny_llama(tmp_path / "llama")
        self.rows(tmp_path, '{"prompt": "a", "completion": "b"}')
        done = prefloop("run", recipe)
        assert done.code == 2
        assert "max_length is 65, but llama has 64 positions: set max_length=64" in done.err

    def test_a_prompt_longer_than_max_length_is_dropped_and_counted(self, prefloop: Prefloop, tmp_path: Path) -> None:
        recipe = self.recipe(tmp_path)
        tiny_llama(tmp_path / "llama")
        long = json.dumps({"prompt": "a " * 200, "completion": "b"})
        self.rows(tmp_path, '{"prompt": "a", "completion": "b"}', long)
        done = prefloop("run", recipe)
        assert done.code == 0
        assert "2 rows read, 1 used, 1 dropped" in done.err
        assert "dropped 1: longer than max_length" in done.err

    def test_the_shipped_sst2_recipe_is_shown_with_local_folders(self, prefloop: Prefloop, tmp_path: Path) -> None:
        model, data = tiny_llama(tmp_path / "llama"), sst2_folder(tmp_path / "sst2")
        done = prefloop("run", "sst2-positive", f"model={model}", f"data={data}", "--dry-run")
        assert done.code == 0
        assert f"model: {model}" in done.out


def test_recipes_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    assert {"tutorials", "sst2-positive"} <= shipped_recipes().keys()
    assert recipe_path("tutorials") == shipped_recipes()["tutorials"]
    assert recipe_path("recipes/tutorials.yaml").name == "tutorials.yaml"
    (tmp_path / "tutorials.yaml").touch()
    assert recipe_path(str(tmp_path / "tutorials.yaml")) == tmp_path / "tutorials.yaml"
    with pytest.raises(SettingsError, match=r"there is no recipe elsewhere/tutorials\.yaml"):
        recipe_path("elsewhere/tutorials.yaml")


def test_figures_that_do_not_exist_are_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert (percent(None), percent(0.125), decimals(None), decimals(-0.001)) == ("–", "12.5 %", "–", "0.00")
    dataset = {"pairs": 2, "annotators_per_pair": 1.0, "agreement_rate": None, "krippendorff_alpha": None}
    figures({"dataset": dataset, "alarms": [{"stage": "ppo", "step": 4, "message": "the judge fell"}]})
    shown = capsys.readouterr().out
    assert "agreement –, Krippendorff's alpha –" in shown
    assert "ALARM in ppo, step 4: the judge fell" in shown
    row = {"success_rate": 0.5, "ci95": (0.4, 0.6), "n": 1200, "kl_from_reference": None}
    policy_table({"only": row | {"mean_response_tokens": None, "distinct_2": None}})
    assert re.search(r"only +50\.0 % +40\.0–60\.0 % +1,200 +– +– +–", capsys.readouterr().out)


def test_the_table_fits_80_columns_with_every_word_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = {"success_rate": 1.0, "ci95": (0.995, 1.0), "n": 1200, "kl_from_reference": 12.01, "kl_is_bound": True}
    row |= {"mean_response_tokens": 128.5, "distinct_2": 0.123}
    policy_table({"ppo_unguarded": row, "a_policy_with_a_long_name": row})
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "a_policy_with_a_long_name" in "".join(line[:17].strip() for line in shown.splitlines())
    assert shown.count("99.5–100.0 %") == 2
    assert re.search(r"ppo_unguarded +100\.0 % +99\.5–100\.0 % +1,200 +≤ 12\.01 +128\.5 +0\.123", shown)
    assert all(
        name in shown for name in ("policy", "success", "95 % interval", "n", "KL (nats)", "tokens", "distinct-2")
    )


def test_samples_show_what_turned_and_how_often(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"sft": {"text": "Dunno.", "success": False}, "ppo": {"text": "Like [this].", "success": True}}
    turned = {"before": "sft", "after": "ppo", "num_gained": 40, "num_lost": 3, "n": 100}
    before_and_after(turned | {"samples": [{"prompt": "How?", "answers": answers}]})
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("How?", "Dunno.", "Like [this].", "sft: not a success", "ppo: success"))
    assert "ppo succeeds 40 times where sft does not, and sft 3 times where ppo does not" in shown
