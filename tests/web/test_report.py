"""The report as a file: complete, offline, inert whatever the texts say, and tolerant of what is missing."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_examples import CONFIG, HOSTILE, SUMMARY, curve_rows, ppo_rows, write_stage

from prefloop.contracts import Sample
from prefloop.errors import RunError
from prefloop.runs.folder import Parent, RunFolder
from prefloop.web.report import render_report


class Page(HTMLParser):
    """What a browser would see: elements with their attributes in order, and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "use":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for _, text in self.texts).split())

    @property
    def headings(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "h2"]


def page(path: Path) -> Page:
    return Page(render_report(path).read_text("utf-8"))


def change_summary(folder: Path, **changes: Any) -> None:
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}), "utf-8")


def test_a_pipeline_shows_every_block_in_order(pipeline_folder: Path):
    found = page(pipeline_folder)
    assert found.headings == [
        "Policies",
        "The same prompts, before and after",
        "Alarms",
        "Is the reward still what it stands for?",
        "Preference data",
        "Reward model",
        "Training",
        "Where everything came from",
        "Stages, settings and data",
        "How to read the numbers",
        "Go on from here",
    ]
    verdict = (
        "PPO answers 91\u00a0% of 600 held-out questions without a flaw [88 to 93], "
        "the imitator it started from 47\u00a0% [43 to 51]."
    )
    assert verdict.replace("\u00a0", " ") in found.text
    for fact in ("1 alarm: read it", "Krippendorff's alpha 0.566", "prefloop chat runs/demo/ppo", "4 min 22 s in all"):
        assert fact in found.text
    # The stage that has not begun is listed without a run folder of its own.
    assert "Evaluation running" in found.text


def test_the_file_stands_alone(pipeline_folder: Path):
    target = render_report(pipeline_folder)
    assert target == pipeline_folder / "report.html"
    html = target.read_text("utf-8")
    found = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in found.elements}
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    references = [value for _, one in found.elements for name, value in one.items() if name in ("href", "src")]
    assert references
    assert all(value and value.startswith("#") for value in references)
    targets = {one.get("id") for _, one in found.elements}
    assert {value[1:] for value in references if value} <= targets
    policy = next(one["content"] for one in found.named("meta") if "http-equiv" in one)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_is_accessible(pipeline_folder: Path):
    found = page(pipeline_folder)
    assert found.named("html")[0]["lang"] == "en"
    assert len(found.named("h1")) == 1
    assert len(found.named("caption")) == len(found.named("table")) >= 7
    assert all(one.get("scope") in ("col", "row") for one in found.named("th"))
    charts = found.named("svg")
    # Policies, two PPO stages, agreement, accuracy and calibration, and 2 + 2 + 2 + 3 + 3 training curves.
    assert len(charts) == 18
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    ids = [one["id"] for _, one in found.elements if one.get("id")]
    assert len(ids) == len(set(ids))
    labelled = [one["aria-labelledby"] for one in found.named("section") if one.get("aria-labelledby")]
    assert set(labelled) <= set(ids)


def test_the_same_folder_gives_the_same_bytes(pipeline_folder: Path):
    first = render_report(pipeline_folder).read_bytes()
    assert render_report(pipeline_folder).read_bytes() == first


def test_hostile_texts_stay_texts(tmp_path: Path):
    """Every place that shows a text of somebody else's gets one that tries to break out."""
    path = tmp_path / "hostile"
    run = write_stage(path / "s", "ppo", parents=(Parent(HOSTILE, HOSTILE, "0"),), rows=ppo_rows(turns_at=24))
    run.mark("failed", HOSTILE)
    run.write_config(f"name: {json.dumps(HOSTILE)}\n{CONFIG}")
    (path / "s/audit.json").write_text(json.dumps({"lines": [HOSTILE]}), "utf-8")
    other = write_stage(path / "t", HOSTILE, rows=[{HOSTILE: 1.0, "step": 0}, {HOSTILE: 2.0, "step": 1}])
    assert other.algorithm == HOSTILE
    summary = copy.deepcopy(SUMMARY)
    summary["policies"] = {HOSTILE: {**SUMMARY["policies"]["ppo"], "judged_by": HOSTILE, "flaws": {HOSTILE: 0.1}}}
    summary["samples"] = [
        {"prompt": [{"role": HOSTILE, "content": HOSTILE}] * 2, "answers": {HOSTILE: {"text": HOSTILE, "score": 1}}}
    ]
    (path / "s/alarms.json").write_text(json.dumps([{"stage": HOSTILE, "step": HOSTILE, "message": HOSTILE}]), "utf-8")
    summary["dataset"]["per_annotator"] = {HOSTILE: {HOSTILE: HOSTILE}}
    summary["judge"] = {"name": HOSTILE, "accuracy": 0.9}
    summary["next_commands"] = [HOSTILE]
    (path / "summary.json").write_text(json.dumps(summary), "utf-8")
    stages = [{"name": HOSTILE, "kind": HOSTILE, "folder": folder, "state": HOSTILE} for folder in ("s", "t")]
    pipeline = {"schema_version": 1, "name": HOSTILE, "recipe": HOSTILE, "seed": HOSTILE, "state": HOSTILE}
    (path / "pipeline.json").write_text(json.dumps({**pipeline, "stages": stages}), "utf-8")

    found = page(path)
    assert found.text.count("<script>alert(1)</script>") > 25
    assert not {"script", "img"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not (attributes.get("href") or "").lower().startswith("javascript")
    assert len(found.named("style")) == 1
    assert {tag for tag, _ in found.elements if tag == "a"} == {"a"}
    assert all((one["href"] or "").startswith("#") for one in found.named("a"))


def test_a_single_run_shows_its_own_blocks(run_folder: Path):
    found = page(run_folder)
    assert found.headings == [
        "The same prompts, before and after",
        "Alarms",
        "Is the reward still what it stands for?",
        "Figures",
        "Training",
        "Settings and data",
        "How to read the numbers",
    ]
    assert "The run is finished after 24 steps: score went from 0 to 2.88." in found.text
    # First and last completion of each held-out prompt; nothing in between, nothing from training.
    assert "answer 0 of step 0" in found.text
    assert "answer 1 of step 24" in found.text
    assert "of step 12" not in found.text
    assert "a rollout" not in found.text
    assert "system: Be brief. user: Why is the sky blue?" in found.text
    # A null figure is a dash, and a nested one has no place among the figures.
    assert "Best checkpoint –" in found.text
    assert "Nested" not in found.text


def go_on(folder: Path) -> None:
    """The run is not finished any more."""
    record = json.loads((folder / "run.json").read_text("utf-8"))
    (folder / "run.json").write_text(json.dumps(record | {"state": "running"}), "utf-8")


def test_alarms_are_those_on_record_and_while_a_run_goes_on_those_of_its_evaluations(run_folder: Path):
    finished = page(run_folder).text
    assert "1 alarm: read it" in finished
    assert "PPO Most answers were cut." in finished
    go_on(run_folder)
    assert "3 alarms: read them" in page(run_folder).text


def test_a_damaged_record_of_alarms_is_named(run_folder: Path):
    (run_folder / "alarms.json").write_text("[{", "utf-8")
    with pytest.raises(RunError, match=r"alarms\.json cannot be read"):
        render_report(run_folder)


def overoptimisation_label(folder: Path) -> str:
    return next(label for one in page(folder).named("svg") if "score and judge" in (label := one["aria-label"] or ""))


def test_a_policy_that_moves_to_and_fro_is_drawn_over_its_steps(tmp_path: Path):
    steady = write_stage(tmp_path / "steady", "ppo", rows=ppo_rows(turns_at=24)).path
    assert "0.47 at KL from the reference, nats per answer 0, 0.902 at 14.4." in overoptimisation_label(steady)
    assert "reached 14.4 of its budget of 12 nats per answer" in page(steady).text
    rows = ppo_rows(turns_at=24)
    for row in rows:
        if "evaluate/judge" in row:
            row["evaluate/kl_policy_from_reference"] = 0.9 + 0.1 * (row["step"] % 8)
    to_and_fro = write_stage(tmp_path / "to_and_fro", "ppo", rows=rows).path
    assert "judge: 0.47 at step 0, 0.902 at 24." in overoptimisation_label(to_and_fro)
    assert "reached 1.3 of its budget of 12 nats per answer" in page(to_and_fro).text


def test_a_far_budget_does_not_squeeze_the_curve(tmp_path: Path):
    run = write_stage(tmp_path / "ppo", "ppo", rows=ppo_rows(turns_at=24))
    assert any("KL budget 12" in text for tag, text in page(run.path).texts if tag == "text")
    run.write_config(CONFIG.replace("12.0", "40.0"))
    assert not any("KL budget" in text for tag, text in page(run.path).texts if tag == "text")


def test_a_chart_without_a_judge_says_what_it_cannot_show(tmp_path: Path):
    rows = [{key: one for key, one in row.items() if key != "evaluate/judge"} for row in ppo_rows(turns_at=24)]
    write_stage(tmp_path / "ppo", "ppo", rows=rows)
    assert "No judge was measured" in page(tmp_path / "ppo").text


def test_alarms_need_the_number_of_samples_behind_the_judge(run_folder: Path):
    go_on(run_folder)
    (run_folder / "config.yaml").write_text("algorithm:\n  kl_budget: 12.0\n", "utf-8")
    assert "Alarms" not in page(run_folder).headings


def test_a_failed_stage_is_an_alarm(pipeline_folder: Path):
    pipeline = json.loads((pipeline_folder / "pipeline.json").read_text("utf-8"))
    pipeline["stages"][3]["state"] = "failed"
    (pipeline_folder / "pipeline.json").write_text(json.dumps(pipeline), "utf-8")
    assert "DPO This stage is failed." in page(pipeline_folder).text


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("policies", "Policies"),
        ("samples", "The same prompts, before and after"),
        ("dataset", "Preference data"),
        ("reward_model", "Reward model"),
        ("next_commands", "Go on from here"),
    ],
)
def test_a_block_without_data_is_left_out(pipeline_folder: Path, key: str, heading: str):
    change_summary(pipeline_folder, **{key: None})
    others = set(page(pipeline_folder).headings)
    assert heading not in others
    assert len(others) == 10


def test_a_pipeline_without_a_summary_shows_what_its_stages_hold(pipeline_folder: Path):
    (pipeline_folder / "summary.json").unlink()
    assert page(pipeline_folder).headings == [
        "Alarms",
        "Is the reward still what it stands for?",
        "Training",
        "Where everything came from",
        "Stages, settings and data",
        "How to read the numbers",
    ]


def test_nulls_show_as_dashes(pipeline_folder: Path):
    change_summary(
        pipeline_folder,
        policies={"sft": dict.fromkeys(SUMMARY["policies"]["sft"])},
        dataset=dict.fromkeys(SUMMARY["dataset"]),
        reward_model=dict.fromkeys(SUMMARY["reward_model"]),
        judge={"name": "rubric", "accuracy": None, "ci95": None},
    )
    found = page(pipeline_folder)
    assert "None" not in found.text
    assert "nan" not in found.text
    assert "SFT – – –" in found.text
    assert "Accuracy –" in found.text


def test_a_pipeline_that_has_just_begun_has_a_report(tmp_path: Path):
    stages = [{"name": "sft", "kind": "sft", "folder": "sft", "state": "running", "seconds": None}]
    pipeline = {"schema_version": 1, "name": "new", "state": "running", "stages": stages}
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline), "utf-8")
    text = page(tmp_path).text
    assert "The pipeline is running: 0 of 1 stages are finished, and no policy is measured yet." in text


def test_a_run_without_steps_has_a_report(tmp_path: Path):
    write_stage(tmp_path / "sft", "sft", rows=[])
    assert "no training step is on record" in page(tmp_path / "sft").text


def test_lineage_names_the_stage_that_fed_a_stage(pipeline_folder: Path):
    found = page(pipeline_folder)
    assert "demonstrations: data/demonstrations.jsonl" in found.text
    # The unguarded PPO came from the third stage too, and links there.
    assert "policy: SFT , reward: Reward model" in found.text
    assert {"href": "#stage-3"} in found.named("a")


def test_headline_curves_put_training_and_held_out_in_one_chart(tmp_path: Path):
    write_stage(tmp_path / "sft", "sft", rows=curve_rows())
    labels = [one["aria-label"] or "" for one in page(tmp_path / "sft").named("svg")]
    # `loss` and `evaluate/loss` share a chart, `entropy` and `learning_rate` are not on record.
    assert [label.split(".")[0] for label in labels] == ["SFT: loss", "SFT: gradient norm"]
    assert "training: 3.3 at step 0" in labels[0]
    assert "held out: 3.4 at step 0" in labels[0]


def test_many_samples_are_folded(pipeline_folder: Path):
    assert "2 more prompts" in page(pipeline_folder).text


def test_an_empty_answer_says_so(run_folder: Path):
    RunFolder(run_folder).append_samples(24, [Sample("Silent?", "", {})], kind="evaluate")
    assert "(empty answer)" in page(run_folder).text


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="neither a run nor a pipeline"):
        render_report(tmp_path)
    with pytest.raises(RunError, match="neither a run nor a pipeline"):
        render_report(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pipeline.json", "summary.json", "sft/audit.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_is_refused_by_name(pipeline_folder: Path, name: str, text: str):
    (pipeline_folder / name).write_text(text, "utf-8")
    with pytest.raises(RunError, match=name):
        render_report(pipeline_folder)


def test_another_schema_version_is_refused(pipeline_folder: Path):
    (pipeline_folder / "pipeline.json").write_text('{"schema_version": 2, "stages": []}', "utf-8")
    with pytest.raises(RunError, match="schema version 2"):
        render_report(pipeline_folder)
