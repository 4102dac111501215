"""Every command that the pages show is run, in one folder, as a reader would who follows them.

`STEPS` says in which order, and what is changed and why: large runs are made small by `SMALL`, names of places are
filled in. A command that is not listed is run as it stands (a run of a recipe: made small), after the listed ones.
What is not run at all is in `NOT_RUN`, each with its reason.
"""

import contextlib
import gzip
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from documented_commands import FENCE, commands, shell_lines, text_of
from dump_files import comment, forum, submission, write_dump
from prefloop.cli.main import app, entry
from prefloop.cli.recipes import recipe_path
from prefloop.models.from_scratch import new_encoder, new_model, train_encoder_tokenizer, train_tokenizer
from prefloop.runs.settings import load_yaml
from toy_recipes import QUESTIONS, dialogues_file, instructions_file, sst2_folder

# What is changed


@dataclass(frozen=True)
class How:
    """How a command is run. `why` says why not as it stands.

    `more` are words put behind it, `instead` words put in the place of others, `typed` what the person types. `says` is
    what it must say where it must fail, with exit code 1.
    """

    why: str = ""
    more: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    typed: str = ""
    says: str | None = None


AS_IT_STANDS = How()
PLAN = ("--dry-run",)
LOCAL = (
    "data=alpaca.jsonl",
    "model=models/gpt2",
    "stages.reward.model=models/distilbert",
    "stages.judge.model=models/distilbert",
)
LOCAL_NAMES = re.compile(r"=(?:distilbert/)?(gpt2|distilbert)[\w-]*$")
PAIRS = ("data=hh.jsonl.gz", "model=models/gpt2")

SMALL: dict[str, dict[str, str]] = {
    "world": {"num_demonstrations": "120"},
    "collect": {"num_pairs": "16", "max_new_tokens": "16"},
    "contrast": {"max_new_tokens": "8", "cut_answers": "keep"},
    "sft": {"training.num_epochs": "0.5", "training.batch_size": "4"},
    "reward_modelling": {"training.num_epochs": "0.5", "training.batch_size": "4"},
    "dpo": {"training.num_epochs": "0.5", "training.batch_size": "4"},
    "ppo": {
        "training.num_steps": "1",
        "training.rollouts_per_step": "4",
        "training.minibatch_size": "4",
        "training.max_new_tokens": "8",
        "training.critic_warmup_steps": "0",
        "training.num_evaluation_samples": "2",
    },
    "evaluate_policies": {"num_samples": "4", "max_new_tokens": "8"},
}
"""By kind of stage, the settings with which it takes a moment."""
SMALL_MODEL = {"hidden_size": "16", "intermediate_size": "32", "num_layers": "1", "num_heads": "2"}

PRETRAINED_REDDIT = (
    "run reddit data=dumps model=gpt2 stages.sft.from_scratch=null stages.reward.from_scratch=null "
    "stages.reward.model=distilbert/distilbert-base-uncased stages.judge_reward.from_scratch=null "
    "stages.judge_reward.model=distilbert/distilbert-base-uncased stages.posts.prompt=title_and_text"
)

STEPS: dict[str, How] = {
    "doctor": AS_IT_STANDS,
    "quickstart": AS_IT_STANDS,
    "run tutorials": AS_IT_STANDS,
    "run tutorials --dry-run": AS_IT_STANDS,
    "quickstart --dry-run": AS_IT_STANDS,
    "quickstart --label": How("it waits for a person at the page", more=PLAN),
    "quickstart --seed 1 --output runs/quickstart-1": How("the run above once more, with another seed", more=PLAN),
    "quickstart stages.ppo.training.kl_coefficient=0.1 stages.sft.training.num_epochs=2": How(
        "the run above once more, with other settings", more=PLAN
    ),
    "run runs/quickstart/config.yaml --output runs/again": How("the run above once more", more=PLAN),
    "run controls": AS_IT_STANDS,
    "chat runs/quickstart/sft runs/quickstart/ppo --no-history": How(typed="How do I tie a knot?\n1\n/quit\n"),
    "label stats chats.db": AS_IT_STANDS,
    "run sst2-positive": How("the Hub is not asked", more=("model=path/to/model", "data=path/to/sst2")),
    "chat runs/quickstart/ppo --no-history": How(typed="How do I tie a knot?\n/quit\n"),
    "chat runs/quickstart/sft --no-history --temperature 0": How(typed="How do I tie a knot?\n/quit\n"),
    "report FOLDER": How("FOLDER stands for a run", instead={"FOLDER": "runs/quickstart"}),
    "collect prompts.jsonl --model path/to/model --max-new-tokens 256": AS_IT_STANDS,
    "label settings labels.db": AS_IT_STANDS,
    "label settings labels.db annotators_per_pair=2": AS_IT_STANDS,
    "collect runs/quickstart/world/prompts.jsonl --model runs/quickstart/sft --max-new-tokens 40 --store labels.db": AS_IT_STANDS,  # noqa: E501 - as it is written
    "label import pairs.jsonl --store labels.db": AS_IT_STANDS,
    "label person Ada --store labels.db": AS_IT_STANDS,
    "label terminal labels.db": How(typed="1\n2\nq\n"),
    "label stats labels.db": AS_IT_STANDS,
    "label export preferences --store labels.db": AS_IT_STANDS,
    "label export preferences --store labels.db --aggregation dawid_skene": How(
        "that folder is taken by the command before it", instead={"preferences": "preferences_2"}
    ),
    "run recipes/sst2-positive.yaml model=path/to/model data=path/to/sst2": AS_IT_STANDS,
    "run sst2-positive model=path/to/model data=path/to/sst2": AS_IT_STANDS,
    "train my-sft.yaml": How("its folder is named by the clock", more=("--output", "runs/my-sft")),
    "train runs/my-sft/config.yaml --resume runs/my-sft": How(
        "the run came to its end", says="is finished: there is nothing to resume"
    ),
    "run alpaca-dpo": How("the Hub is not asked", more=LOCAL),
    PRETRAINED_REDDIT: How(
        "the Hub is not asked",
        instead={word: LOCAL_NAMES.sub(r"=models/\1", word) for word in PRETRAINED_REDDIT.split()},
    ),
    "run instruct-lora": How("the Hub is not asked", more=PAIRS),
    "run instruct-lora data=hh.jsonl.gz stages.reward_report.label_agreement=0.63": How(
        "the Hub is not asked", more=("model=models/gpt2",)
    ),
}

NOT_RUN = {
    "serve runs/quickstart/ppo": "it serves until it is stopped; tests/web/test_completion_server.py does that",
    "label serve labels.db": "it serves until it is stopped; tests/cli/test_label.py starts and stops it",
}

MAKE_NOT_RUN = {
    "setup": "it made the environment in which these tests run",
    "demo": "it is `prefloop quickstart`, which is run",
    "test": "it is what runs these tests",
    "stress": "it takes minutes; tests/stress runs its parts",
    "check": "it runs before every change lands, beside these tests",
    "format": "it rewrites the code; `check` says whether it would",
    "docs": "tests/test_site.py builds the site",
}

OTHER_PROGRAMS = {
    "pip": "tests install nothing",
}

# The folder of a reader

TEXTS = [f"Human: {question}\n\nAssistant: {answer}" for question, answer in QUESTIONS.items()] * 3


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def small_models(folder: Path) -> None:
    """A decoder of each family that the pages name, and an encoder; 512 positions, some thousand weights."""
    tokenizer = train_tokenizer(TEXTS, vocabulary_size=300)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 512}
    for place, architecture in (("path/to/model", "llama"), ("models/llama", "llama"), ("models/gpt2", "gpt2")):
        model = new_model(architecture, tokenizer, **sizes, seed=1)  # type: ignore[arg-type]
        model.save_pretrained(folder / place)
        tokenizer.save_pretrained(folder / place)
    encoder_tokenizer = train_encoder_tokenizer(TEXTS, "distilbert", vocabulary_size=300, max_length=512)
    new_encoder("distilbert", encoder_tokenizer, **sizes, seed=1).save_pretrained(folder / "models/distilbert")
    encoder_tokenizer.save_pretrained(folder / "models/distilbert")


def small_data(folder: Path) -> None:
    """Every file that the pages name."""
    asked = list(QUESTIONS.items())
    write_rows(folder / "prompts.jsonl", [{"prompt": question} for question, _ in asked])
    rows: list[dict[str, object]] = [
        {"prompt": question, "chosen": answer, "rejected": "I do not know."} for question, answer in asked
    ]
    write_rows(folder / "pairs.jsonl", rows)
    write_rows(folder / "path/to/pairs.jsonl", rows)
    demonstrations: list[dict[str, object]] = [{"prompt": question, "completion": answer} for question, answer in asked]
    numbered: list[dict[str, object]] = [
        {"prompt": f"{question} ({number})", "completion_0": answer, "completion_1": "I do not know.", "label": 0}
        for number in range(10)
        for question, answer in asked
    ]
    write_rows(folder / "my_pairs.jsonl", numbered)
    unlabelled = [{"prompt": row["prompt"], "left": row["chosen"], "right": row["rejected"]} for row in rows]
    write_rows(folder / "unlabelled_pairs.jsonl", unlabelled)
    for name in ("demonstrations", "held_out"):
        write_rows(folder / f"{name}.jsonl", demonstrations)
    (folder / "reviews.csv").write_text("review,is_positive\na fine film,1\na dull film,0\n", encoding="utf-8")
    sst2_folder(folder / "path/to/sst2")
    instructions_file(folder / "alpaca.jsonl", num_rows=120)
    plain = dialogues_file(folder / "hh.jsonl", num_rows=60)
    with gzip.open(folder / "hh.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(plain.read_text(encoding="utf-8"))
    posts_with_text = [submission(f"s{number}") for number in range(12)]
    (folder / "dumps").mkdir()
    for place in ("", "dumps/"):
        write_dump(folder / f"{place}questions.jsonl.gz", forum(150))
        write_dump(folder / f"{place}RS_2013-01.zst", posts_with_text)
        write_dump(
            folder / f"{place}RC_2013-01.zst", [comment(f"c{post['id']}", post["id"]) for post in posts_with_text]
        )
    (written,) = [body for _, body in FENCE.findall(text_of("docs/recipes.md")) if body.startswith("name: my-sft\n")]
    (folder / "my-sft.yaml").write_text(written, encoding="utf-8")


# How it is run

ROOT_COMMAND: Any = typer.main.get_command(app)
VERBS = {*ROOT_COMMAND.commands, *(f"label {name}" for name in ROOT_COMMAND.commands["label"].commands)}


def small_overrides(words: tuple[str, ...]) -> list[str]:
    """What makes the recipe that a command names small, but for what the command sets itself."""
    verb, *rest = words
    named = "tutorials" if verb == "quickstart" else rest[0]
    recipe = load_yaml(recipe_path("tutorials-label" if "--label" in rest else named))
    stages = recipe.get("stages", {}) if "stages" in recipe else {"": recipe["stage"]}
    found: dict[str, str] = {}
    for name, stage in stages.items():
        above = f"stages.{name}" if name else "stage"
        found |= {f"{above}.{key}": value for key, value in SMALL.get(stage["kind"], {}).items()}
        if stage.get("from_scratch"):
            found |= {f"{above}.from_scratch.{key}": value for key, value in SMALL_MODEL.items()}
    given = {word.partition("=")[0] for word in rest}
    return [f"{key}={value}" for key, value in found.items() if not {key, key.rpartition(".")[0]} & given]


def words_to_run(words: tuple[str, ...], how: How) -> list[str]:
    """The command as it is run."""
    is_name = shlex.join(words) in VERBS
    if is_name and shlex.join(words) not in STEPS:
        # A verb named in a sentence: most want more than their name.
        return [*words, "--help"]
    changed = [*(how.instead.get(word, word) for word in words), *how.more]
    is_training = words[0] in ("quickstart", "run", "train")
    if is_training and not {"--help", "--dry-run", "--resume"} & set(changed):
        changed += small_overrides(tuple(changed))
    return changed


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    code: int
    out: str
    err: str


def outcome_of(words: list[str], typed: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prefloop", *words])
        patch.setattr(sys, "stdin", io.StringIO(typed))
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                entry()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
    return Outcome(code, out.getvalue(), err.getvalue())


def documented() -> list[str]:
    """Every command of the pages once: those of `STEPS` in their order, then the others in the order of the pages."""
    found = dict.fromkeys(shlex.join(command.words) for command in commands("prefloop"))
    listed = [one for one in STEPS if one in found]
    return [*listed, *(one for one in found if one not in STEPS and one not in NOT_RUN)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """All commands, run in one folder in their order: what one makes, the next ones use."""
    folder = tmp_path_factory.mktemp("reader")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small_models(folder)
    (folder / "path/to").mkdir(exist_ok=True, parents=True)
    small_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
            patch.setattr(name, True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        found = {}
        for line in documented():
            how = STEPS.get(line, AS_IT_STANDS)
            found[line] = outcome_of(words_to_run(tuple(shlex.split(line)), how), how.typed)
    yield found
    torch.set_num_threads(threads)


# What must hold


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_does_what_the_page_says(line: str, outcomes: dict[str, Outcome]) -> None:
    done, how = outcomes[line], STEPS.get(line, AS_IT_STANDS)
    assert done.code == (0 if how.says is None else 1), f"prefloop {line}: {done.err or done.out}"
    assert (how.says or "") in done.err
    assert done.out or done.err
    assert "Traceback" not in done.err


def test_the_tables_name_no_command_that_no_page_shows() -> None:
    shown = {shlex.join(command.words) for command in commands("prefloop")}
    assert sorted({*STEPS, *NOT_RUN} - shown) == []
    assert not STEPS.keys() & NOT_RUN.keys()
    targets = {command.words[0] for command in commands("make")}
    assert sorted(targets - MAKE_NOT_RUN.keys()) == []


def test_whatever_is_changed_or_left_out_has_a_reason() -> None:
    changed = [line for line, how in STEPS.items() if how.more or how.instead or how.says]
    assert [line for line in changed if not STEPS[line].why] == []
    assert all([*NOT_RUN.values(), *MAKE_NOT_RUN.values(), *OTHER_PROGRAMS.values()])


def test_every_line_of_a_shell_is_known() -> None:
    programs = {re.split(r"\s", line)[0] for line in shell_lines()} - {"prefloop", "make"}
    assert sorted(programs - OTHER_PROGRAMS.keys()) == []


def test_a_command_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome_of(["run", "no-such-recipe"], "").code == 2
    assert outcome_of(["report", "."], "").code == 1
