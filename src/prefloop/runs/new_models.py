"""Models made on the spot for a stage, with tokenizers trained on the stage's data."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prefloop.contracts import RewardModel
from prefloop.data.chat_format import ChatFormat
from prefloop.data.encoder_format import EncoderFormat, TextFormat
from prefloop.models.backbone import Backbone
from prefloop.models.encoder_rewards import EncoderRewardModel, is_encoder_type
from prefloop.models.from_scratch import (
    Architecture,
    EncoderArchitecture,
    new_encoder,
    new_model,
    train_encoder_tokenizer,
    train_tokenizer,
)
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Demonstration, LabelledText, PreferencePair, TextExample, prompt_text
from prefloop.runs.stage_context import StageContext, device, read_format
from prefloop.runs.stage_settings import FromScratch, ModelSizes, Precision, PromptFormat, RewardFromScratch


def new_policy(
    scratch: FromScratch | RewardFromScratch,
    records: Sequence[Any],
    context: StageContext,
    *,
    precision: Precision,
    prompt_format: PromptFormat | None,
) -> tuple[Policy, ChatFormat]:
    """A language model with random weights, its tokenizer trained on the records' texts."""
    tokenizer = train_tokenizer(
        _texts(records), vocabulary_size=scratch.vocabulary_size, sentence_min_count=scratch.sentence_min_count
    )
    model = new_model(cast(Architecture, scratch.architecture), tokenizer, seed=context.seed, **_sizes(scratch))
    _tell(scratch, model, tokenizer, context)
    backbone = Backbone(model.to(device()), precision=precision)  # type: ignore[arg-type]
    return Policy(backbone, tokenizer), read_format("", tokenizer, prompt_format)


def new_reward_model(
    scratch: RewardFromScratch,
    records: Sequence[Any],
    context: StageContext,
    *,
    precision: Precision,
    prompt_format: PromptFormat | None,
) -> tuple[RewardModel, TextFormat]:
    """A reward model with random weights that scores 0 everywhere, its tokenizer trained on the records' texts."""
    if not is_encoder_type(scratch.architecture):
        policy, chat_format = new_policy(scratch, records, context, precision=precision, prompt_format=prompt_format)
        return ScalarModel(policy.backbone, policy.tokenizer), chat_format
    architecture = cast(EncoderArchitecture, scratch.architecture)
    tokenizer = train_encoder_tokenizer(
        _texts(records),
        architecture,
        vocabulary_size=scratch.vocabulary_size,
        max_length=scratch.max_length,
        sentence_min_count=scratch.sentence_min_count,
    )
    model = new_encoder(architecture, tokenizer, seed=context.seed, **_sizes(scratch))
    _tell(scratch, model, tokenizer, context)
    encoder = EncoderRewardModel(model.to(device()), tokenizer, precision=precision)  # type: ignore[arg-type]
    return encoder, EncoderFormat(tokenizer, prompt_format=prompt_format or "auto")


def _sizes(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_layers": sizes.num_layers,
        "num_heads": sizes.num_heads,
        "max_length": sizes.max_length,
    }


def _tell(
    scratch: FromScratch | RewardFromScratch,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    context: StageContext,
) -> None:
    num = sum(parameter.numel() for parameter in model.parameters())
    context.progress.note(f"  a new {scratch.architecture} of {num:,} parameters, {len(tokenizer):,} tokens")


def _texts(records: Sequence[TextExample | Demonstration | PreferencePair | LabelledText]) -> list[str]:
    """Every text of the records, prompts included."""
    texts: list[str] = []
    for record in records:
        if not isinstance(record, TextExample):
            texts.append(prompt_text(record.prompt))
        if isinstance(record, PreferencePair):
            texts += [record.chosen, record.rejected]
        else:
            texts.append(record.completion if isinstance(record, Demonstration) else record.text)
    return texts
