"""The recipe that begins with raw posts and replies, from end to end on toy dumps and toy models."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dump_files import comment, forum, submission, write_dump
from prefloop.cli.recipes import shipped_recipes
from prefloop.errors import DataError, SettingsError
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.plan import check
from prefloop.runs.progress import Progress
from prefloop.runs.settings import load_yaml, merge, parse_overrides, validate
from prefloop.runs.stage_settings import Pipeline
from prefloop.web.report import render_report

PARTS = ("train", "judge", "test")
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocabulary_size": 300}
TRAINED = ("sft", "reward", "judge_reward")
SMALL = [
    "stages.posts.pair_rules.least_vote_difference=1",
    *(f"stages.{stage}.from_scratch.{name}={size}" for stage in TRAINED for name, size in TINY.items()),
    *(f"stages.{stage}.training.num_epochs=1" for stage in TRAINED),
    *(f"stages.{stage}.training.batch_size=8" for stage in TRAINED),
    "stages.ppo.training.num_steps=2",
    "stages.ppo.training.rollouts_per_step=8",
    "stages.ppo.training.minibatch_size=4",
    "stages.ppo.training.max_new_tokens=12",
    "stages.ppo.training.num_evaluation_samples=4",
    "stages.policies.num_samples=8",
    "stages.policies.max_new_tokens=12",
]  # fmt: skip


def reddit(*overrides: str) -> Pipeline:
    path = shipped_recipes()["reddit"]
    return validate(Pipeline, merge(load_yaml(path), parse_overrides(list(overrides))), origin=str(path))


def run(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    return run_pipeline(pipeline, folder, progress=Progress(quiet=True), resume_command="again")


def prepared(folder: Path, *overrides: str) -> dict[str, Any]:
    """The audit of the first stage."""
    whole = reddit(*overrides)
    run(whole.model_copy(update={"stages": {"posts": whole.stages["posts"]}, "next_commands": ()}), folder)
    return json.loads((folder / "posts" / "audit.json").read_text())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The whole recipe, run once on questions and on posts that nobody answered."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reddit")
    questions = write_dump(folder / "questions.jsonl.gz", forum(150))
    posts = write_dump(folder / "RS_2014-05.zst", [submission(f"s{number}") for number in range(12)])
    summary = run(reddit(*SMALL, f"stages.posts.sources=[{questions}, {posts}]"), folder / "out")
    yield folder / "out", summary
    torch.set_num_threads(before)


def test_the_recipe_runs_from_dumps_to_a_measured_policy(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    assert set(summary["policies"]) == {"sft", "ppo", "best_of_n"}
    assert summary["policies"]["ppo"]["n"] == 8
    assert {"accuracy", "auc_concordance", "auc_oriented", "auc_pooled", "length_only_accuracy"} <= summary[
        "reward_model"
    ].keys()
    assert summary["judge"]["name"] == "encoder of other posts, wins against other answers of sft"
    assert summary["judge"]["accuracy"] > 0.9
    assert summary["second_judge"]["n"] > 0


def test_the_reward_model_is_an_encoder_and_learns_whom_people_vote_for(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    config = json.loads((folder / "reward" / "final" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]


def test_each_share_holds_its_own_posts(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    prompts = {part: {row["prompt"] for row in rows(folder / "posts" / f"{part}_prompts.jsonl")} for part in PARTS}
    assert sum(len(found) for found in prompts.values()) == len(set.union(*prompts.values())) == 162
    for part in PARTS:
        for name in ("demonstrations", "pairs", "comparisons", "labelled"):
            found = rows(folder / "posts" / f"{part}_{name}.jsonl")
            assert found
            assert {row["prompt"] for row in found} <= prompts[part]
    assert not {row["prompt"] for row in rows(folder / "labels" / "preferences.jsonl")} & prompts["test"]


def test_every_row_and_every_pair_is_in_the_audit(finished: tuple[Path, dict[str, Any]]) -> None:
    audit = json.loads((finished[0] / "posts" / "audit.json").read_text())
    for what, num in (("posts", 162), ("replies", 300)):
        account = audit[what]
        assert account["read"] == num == account["used"] + sum(account["dropped"].values())
    for part in PARTS:
        pairs = audit["parts"][part]["pairs"]
        assert pairs["possible"] == pairs["used"] + sum(pairs["dropped"].values())
        assert pairs["earlier_won_before"]["share"] == pytest.approx(2 / 3, abs=0.2)
        assert pairs["earlier_won_after"]["share"] == 0.5
        assert audit["parts"][part]["rows"]["pairs"] == pairs["used"]
    assert any("with early_answer matched 50.0%" in line for line in audit["lines"])
    assert "prompts that train and test share: 0" in audit["lines"]


def test_several_annotators_label_each_pair_and_the_report_shows_how_far_they_agree(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = finished
    dataset = summary["dataset"]
    readers = [f"simulated reader {number}" for number in (1, 2, 3)]
    assert list(dataset["per_annotator"]) == ["asker", *readers, "voters"]
    assert 4 < dataset["annotators_per_pair"] < 5
    people = dataset["rounds"][0]["people"]
    assert 0 < people["pairs"] < dataset["pairs"]
    assert people["agreement_rate"] == 1.0
    assert dataset["agreement_rate"] < 1.0
    page = render_report(folder).read_text(encoding="utf-8")
    (chart,) = re.findall(r'aria-label="(Agreement of annotators: [^"]*)"', page)
    assert "People alone 100" in chart
    assert "simulated reader 1, with others" in chart


def test_comparisons_show_either_side_first_and_keep_the_votes_with_it(finished: tuple[Path, dict[str, Any]]) -> None:
    found = rows(finished[0] / "posts" / "train_comparisons.jsonl")
    better = [
        "left" if row["details"]["votes"]["left"] > row["details"]["votes"]["right"] else "right" for row in found
    ]
    assert all(row[side]["text"].startswith("Gladly") for row, side in zip(found, better, strict=True))
    assert 0.2 < better.count("left") / len(better) < 0.8
    for row, side in zip(found, better, strict=True):
        accepted = row["details"]["accepted"]
        assert accepted == {"left": False, "right": False} or accepted[side]


def test_a_second_preparation_writes_the_same_bytes(tmp_path: Path) -> None:
    write_dump(tmp_path / "questions.jsonl", forum(60))
    for name in ("one", "other"):
        prepared(tmp_path / name, f"data={tmp_path / 'questions.jsonl'}")
    files = sorted((tmp_path / "one" / "posts").glob("*.jsonl"))
    assert len(files) == 18
    for file in files:
        assert file.read_bytes() == (tmp_path / "other" / "posts" / file.name).read_bytes()


def test_a_folder_of_submissions_and_comments_makes_pairs_too(tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    numbers = range(40)
    write_dump(dumps / "RS_2014-05.zst", [submission(f"p{number}") for number in numbers])
    comments = [
        comment(
            f"{number}{side}", f"p{number}", score=score, body=f"{word} loaf {number}, says {side}, and means it well."
        )
        for number in numbers
        for side, word, score in (("a", "Bake the", 9), ("b", "Throw out the", 1))
    ]
    write_dump(dumps / "RC_2014-05.zst", comments)
    audit = prepared(tmp_path / "out", f"data={dumps}", "stages.posts.pair_rules.early_answer=keep")
    assert sum(part["pairs"]["used"] for part in audit["parts"].values()) == 40
    pair = rows(tmp_path / "out" / "posts" / "train_pairs.jsonl")[0]
    assert pair["prompt"].startswith("Why does loaf p")
    assert pair["chosen"].startswith("Bake the loaf")
    assert pair["rejected"].startswith("Throw out the loaf")


def test_the_text_of_a_post_is_part_of_the_prompt_where_it_is_asked_for(tmp_path: Path) -> None:
    write_dump(tmp_path / "questions.jsonl", forum(60))
    prepared(tmp_path / "out", f"data={tmp_path / 'questions.jsonl'}", "stages.posts.prompt=title_and_text")
    prompt = rows(tmp_path / "out" / "posts" / "train_prompts.jsonl")[0]["prompt"]
    assert re.fullmatch(r"How long does dough (\d+) rest\?\n\nMy dough \1 is stiff\.", prompt)


def test_the_best_answers_are_shown_and_summaries_asked_for(tmp_path: Path) -> None:
    told = [
        submission(f"t{number}", selftext=f"Loaf {number} sank.\n\nTL;DR: bake {number} longer") for number in range(40)
    ]
    dumps = [write_dump(tmp_path / "questions.jsonl", forum(60)), write_dump(tmp_path / "told.jsonl", told)]
    one_each = "stages.posts.demonstrations_per_post=1"
    prepared(tmp_path / "out", f"stages.posts.sources=[{dumps[0]}, {dumps[1]}]", one_each)
    shown = [row for part in PARTS for row in rows(tmp_path / "out" / "posts" / f"{part}_demonstrations.jsonl")]
    assert len(shown) == 60
    assert all(row["completion"].startswith("Gladly") for row in shown)
    summaries = [row for part in PARTS for row in rows(tmp_path / "out" / "posts" / f"{part}_summaries.jsonl")]
    assert len(summaries) == 40
    assert all(row["prompt"].endswith("sank.\n\nTL;DR:") for row in summaries)
    assert all(re.fullmatch(r"bake \d+ longer", row["completion"]) for row in summaries)


def test_without_data_the_plan_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"posts: it names no dumps .* set data=PATH to a file or folder of posts"):
        check(reddit())
    with pytest.raises(SettingsError, match=r"posts\.sources: there is no file or folder nowhere\.zst"):
        check(reddit("data=nowhere.zst"))


def test_a_share_without_posts_is_an_error(tmp_path: Path) -> None:
    write_dump(tmp_path / "one.jsonl", forum(1))
    with pytest.raises(DataError, match="is empty: 1 of 1 posts passed the filters"):
        prepared(tmp_path / "out", f"data={tmp_path / 'one.jsonl'}")
