"""What a running stage works with: its folder, where its inputs are, and how models are read and written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from prefloop.batches import TokenGroup
from prefloop.contracts import RewardModel
from prefloop.data.audit import Audit, prepare_groups
from prefloop.data.chat_format import ChatFormat
from prefloop.data.encoder_format import EncoderFormat, TextFormat
from prefloop.data.sources import ReadResult, read_records, write_jsonl
from prefloop.errors import ModelError, RunError
from prefloop.models.backbone import Backbone, load_causal_model, load_reward_model, load_tokenizer
from prefloop.models.encoder_rewards import EncoderRewardModel, is_encoder, load_encoder, load_encoder_tokenizer
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Prompt
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import ModelReward
from prefloop.runs.folder import ALARMS_FILE, Parent, RunFolder, json_text, replace_atomically
from prefloop.runs.progress import Progress
from prefloop.runs.stage_settings import Precision, PromptFormat, RecordKind, TooLong

FORMAT_FILE = "prefloop.json"
"""Beside a model's weights: how prompts were laid out in its training."""


@dataclass
class StageContext:
    """One stage at work. `stages` maps the names of the pipeline's stages to their folders."""

    name: str
    folder: RunFolder
    seed: int
    progress: Progress
    precision: Precision
    resume_command: str
    stages: dict[str, Path] = field(default_factory=dict)
    default_model: str | None = None
    default_data: str | None = None
    resume: bool = False
    audits: dict[str, Audit] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder.path

    def resolve(self, reference: str) -> str:
        """Where an input is: `stage` is the model it trained, `stage/file` a file of its; anything else stays."""
        return resolve(reference, self.stages)

    def read(self, reference: str, kind: RecordKind) -> ReadResult:
        """The records of a file (of another stage, or from outside)."""
        return read_records(self.resolve(reference), kind=kind)

    def read_all(self, references: Sequence[str], kind: RecordKind) -> ReadResult:
        """The records of several files as one."""
        return joined([self.read(reference, kind) for reference in references])

    def with_room(
        self, prompts: Sequence[Prompt], generator: PolicyGenerator, *, max_new_tokens: int, what: str
    ) -> list[Prompt]:
        """The prompts after which the model has room for so many tokens; how many are left out is said aloud.

        Raises ModelError where none is left.
        """
        ids = (generator.chat_format.prompt_ids(prompt) for prompt in prompts)
        kept = [prompt for prompt, one in zip(prompts, ids, strict=True) if generator.has_room(one, max_new_tokens)]
        limits = f"the model has {generator.context_length} positions and max_new_tokens is {max_new_tokens}"
        if not kept:
            raise ModelError(f"no prompt of {what} leaves room for an answer: {limits}, so lower max_new_tokens")
        if len(kept) < len(prompts):
            self.progress.note(
                f"  {what}: {len(prompts) - len(kept):,} of {len(prompts):,} prompts left out, too long: {limits}"
            )
        return kept

    def prepare(
        self, found: ReadResult, text_format: TextFormat, *, max_length: int, too_long: TooLong, what: str
    ) -> tuple[list[TokenGroup], list[Any]]:
        """Token groups and the records they came from, with the account shown and kept in audit.json."""
        groups, kept, audit = prepare_groups(
            found.records,
            text_format,
            max_length=max_length,
            too_long=too_long,
            places=found.places,
            dropped_before=found.dropped,
        )
        self.audit(audit, what)
        return groups, kept

    def audit(self, audit: Audit, what: str) -> None:
        """Shows an account, and keeps it in audit.json beside those of this stage's other data."""
        self.audits[what] = audit
        kept = {
            "lines": [line for name, one in self.audits.items() for line in (f"{name}:", *one.lines())],
            "parts": {name: one.to_json() for name, one in self.audits.items()},
        }
        replace_atomically(self.path / "audit.json", json_text(kept, indent=2) + "\n")
        shown = [line for line in audit.lines() if not line.startswith("example")][:4]
        for line in shown[: 2 + len(audit.dropped)]:
            self.progress.note(f"  {what}: {line.strip()}")

    def tell_of_cut_texts(self, source: ModelReward[Any]) -> None:
        """Says it aloud where a reward model could not read texts as a whole."""
        if source.truncation:
            self.progress.warn(f"{self.name}: {source.truncation}")

    def alarm(self, message: str, *, step: int | None = None, aloud: bool = True) -> None:
        """What nobody must miss: said now unless not `aloud`, kept for the summary, the report and the model card.

        `step` is None for what concerns the stage as a whole.
        """
        self.alarms.append({"stage": self.name, "step": step, "message": message})
        self.write_json(ALARMS_FILE, self.alarms)
        if aloud:
            self.progress.warn(f"ALARM in {self.name}: {message}")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes a JSONL file that other stages may read."""
        write_jsonl(self.path / name, rows)
        self.folder.add_output(name, self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file that is on record as an output."""
        replace_atomically(self.path / name, json_text(value, indent=2) + "\n")
        self.folder.add_output(name, self.path / name)


def resolve(reference: str, stages: dict[str, Path]) -> str:
    """See `StageContext.resolve`."""
    first, _, rest = reference.partition("/")
    if first not in stages:
        return reference
    place = stages[first] / (rest or "final")
    if not place.exists():
        raise RunError(f"{reference} was not written by stage {first}: {place} is missing")
    return str(place)


def joined(parts: Sequence[ReadResult]) -> ReadResult:
    """Several readings as one."""
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return ReadResult(
        kind=parts[0].kind,
        records=[record for part in parts for record in part.records],
        places=[place for part in parts for place in part.places],
        rows_read=sum(part.rows_read for part in parts),
        dropped=dropped,
        files=[file for part in parts for file in part.files],
    )


def parent_of(reference: str, role: str, stages: dict[str, Path]) -> Parent | None:
    """The stage an input came from, for the lineage; None for a path from outside."""
    first = reference.partition("/")[0]
    if first not in stages:
        return None
    provenance = json.loads((stages[first] / "provenance.json").read_text(encoding="utf-8"))
    return Parent(role, str(Path("..") / first), provenance["fingerprint"])


def device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_format(model: str, tokenizer: PreTrainedTokenizerFast, asked: PromptFormat | None) -> ChatFormat:
    """The format a model was trained with here, unless another is asked for; "auto" for models from elsewhere."""
    return ChatFormat(tokenizer, prompt_format=asked or _stored_format(model))


def _stored_format(model: str) -> PromptFormat:
    stored = Path(model) / FORMAT_FILE
    return json.loads(stored.read_text(encoding="utf-8"))["prompt_format"] if stored.is_file() else "auto"


def write_format(folder: Path, text_format: TextFormat) -> None:
    """Records the format beside the weights."""
    text = json_text({"prompt_format": text_format.prompt_format}, indent=2) + "\n"
    replace_atomically(folder / FORMAT_FILE, text)


def require_model(model: str) -> None:
    """Raises ModelError where a model's config or tokenizer cannot be had; its weights stay where they are."""
    if is_encoder(model):
        load_encoder_tokenizer(model)
    else:
        load_tokenizer(model)


def read_policy(
    model: str, *, precision: Precision, prompt_format: PromptFormat | None = None
) -> tuple[Policy, ChatFormat]:
    """A language model with its tokenizer and format, on the accelerator where there is one.

    Raises ModelError where none can be loaded, for a classifier, whose head would be made up, and for an encoder.
    """
    if is_encoder(model):
        raise ModelError(f"{model} is an encoder, which cannot write text: it can be a reward model only")
    tokenizer = load_tokenizer(model)
    found = load_causal_model(model)
    if any(name.endswith("ForSequenceClassification") for name in found.config.architectures or ()):
        raise ModelError(f"{model} is a reward model: give a language model (prefloop score is for reward models)")
    backbone = Backbone(found.to(device()), precision=precision)  # type: ignore[arg-type]
    return Policy(backbone, tokenizer), read_format(model, tokenizer, prompt_format)


def read_encoder(
    model: str, *, seed: int, precision: Precision, prompt_format: PromptFormat | None = None
) -> tuple[EncoderRewardModel, EncoderFormat]:
    """An encoder to be trained as a reward model: its output layer is new and scores 0 everywhere."""
    tokenizer = load_encoder_tokenizer(model)
    text_format = EncoderFormat(tokenizer, prompt_format=prompt_format or _stored_format(model))
    found = load_encoder(model, seed=seed).to(device())  # type: ignore[arg-type]
    return EncoderRewardModel(found, tokenizer, precision=precision), text_format


def read_reward_model(model: str, *, precision: Precision) -> tuple[RewardModel, TextFormat]:
    """A trained reward model, decoder or encoder, with its format."""
    if is_encoder(model):
        tokenizer = load_encoder_tokenizer(model)
        text_format = EncoderFormat(tokenizer, prompt_format=_stored_format(model))
        encoder = load_reward_model(model).to(device())  # type: ignore[arg-type]
        return EncoderRewardModel(encoder, tokenizer, precision=precision), text_format
    tokenizer = load_tokenizer(model)
    scalar = ScalarModel.from_classifier(load_reward_model(model).to(device()), tokenizer, precision=precision)  # type: ignore[arg-type]
    return scalar, read_format(model, tokenizer, None)
