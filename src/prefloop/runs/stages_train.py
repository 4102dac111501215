"""The stages that train: they put an algorithm together from settings and hand it to the loop."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from prefloop.algorithms.dpo import DPO
from prefloop.algorithms.ppo import PPO
from prefloop.algorithms.reward_modelling import RewardModelling
from prefloop.algorithms.sft import SFT
from prefloop.contracts import Algorithm, RewardModel, RewardSource
from prefloop.data.chat_format import ChatFormat
from prefloop.data.encoder_format import TextFormat
from prefloop.errors import ModelError, SettingsError
from prefloop.evaluation.overoptimisation import overoptimisation_alarms
from prefloop.models.adapters import base_fingerprint, fits, load_adapter, save_adapter
from prefloop.models.backbone import Backbone
from prefloop.models.encoder_rewards import is_encoder
from prefloop.models.policy import Policy, probe
from prefloop.models.scalar_heads import ScalarModel
from prefloop.models.update import OptimizerSettings
from prefloop.records import LabelledText, PreferencePair, Prompt
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import ConstantReward, ModelReward, ShuffledReward
from prefloop.runs.drive import DriveSettings, drive
from prefloop.runs.judges import make_judge
from prefloop.runs.model_card import write_card
from prefloop.runs.new_models import new_policy, new_reward_model
from prefloop.runs.stage_context import (
    StageContext,
    read_encoder,
    read_policy,
    read_reward_model,
    write_format,
)
from prefloop.runs.stage_settings import (
    DPOStage,
    Lora,
    PPOStage,
    RewardStage,
    SFTStage,
    TrainingStage,
)

POLICY, CRITIC, REWARD = "policy", "critic", "reward"
"""Names of the adapters when roles share one backbone."""

LEARNING_RATES = ("learning_rate", "critic_learning_rate")
"""Settings that `learning_rate_width` scales."""

LEAST_ENDED_SHARE = 0.1
"""Below this share of ended answers, a score for cut ones drowns the reward model's."""


def run_sft(settings: SFTStage, context: StageContext) -> None:
    found = context.read_all(settings.train, settings.records)
    if settings.from_scratch is not None:
        precision = settings.precision or context.precision
        policy, chat_format = new_policy(
            settings.from_scratch, found.records, context, precision=precision, prompt_format=settings.prompt_format
        )
    else:
        policy, chat_format = _policy(_model_name(settings.model, context), settings, context)
    _train_adapter(policy, settings.lora, seed=context.seed)
    groups, _ = _groups(found, chat_format, settings, context, "training data")
    held_out: list[Any] = []
    if settings.evaluate is not None:
        held_out, _ = _groups(
            context.read(settings.evaluate, settings.records), chat_format, settings, context, "held-out data"
        )
    algorithm = SFT(
        policy,
        groups,
        config=_for_width(settings.training, policy.backbone.width, context),
        seed=context.seed,
        evaluation_groups=held_out,
    )
    _run(algorithm, settings, context, chat_format)


def run_reward_modelling(settings: RewardStage, context: StageContext) -> None:
    read = context.read_all(settings.train, settings.records)
    model, text_format = _untrained_reward_model(settings, read.records, context)
    groups, kept = _groups(read, text_format, settings, context, "training data")
    held_out: tuple[list[Any], list[Any]] = ([], [])
    if settings.evaluate is not None:
        found = context.read(settings.evaluate, settings.records)
        held_out = _groups(found, text_format, settings, context, "held-out data")
    language_model = None
    if isinstance(model, ScalarModel):
        language_model = Policy(model.backbone, model.tokenizer, adapter=model.adapter)
    algorithm = RewardModelling(
        model,
        groups,
        [_target(record) for record in kept],
        config=_for_width(settings.training, model.width, context),
        seed=context.seed,
        evaluation_groups=held_out[0],
        evaluation_targets=[_target(record) for record in held_out[1]],
        language_model=language_model,
    )
    _run(algorithm, settings, context, text_format)
    if isinstance(model, ScalarModel) and model.adapter is not None:
        place = context.path / "final" / "adapter"
        # The base's weights stay as they are under LoRA.
        save_adapter(model.backbone, REWARD, place, head=model.head, fingerprint=base_fingerprint(model.backbone))


def run_dpo(settings: DPOStage, context: StageContext) -> None:
    policy, chat_format = _policy(context.resolve(settings.policy), settings, context)
    reference = _reference(policy, settings.reference, settings, context)
    _train_adapter(policy, settings.lora, seed=context.seed)
    groups, kept = _groups(context.read_all(settings.train, "pairs"), chat_format, settings, context, "training data")
    held_out: tuple[list[Any], list[Any]] = ([], [])
    if settings.evaluate is not None:
        held_out = _groups(context.read(settings.evaluate, "pairs"), chat_format, settings, context, "held-out data")
    algorithm = DPO(
        policy,
        reference,
        groups,
        [record.agreement for record in kept],
        config=_for_width(settings.training, policy.backbone.width, context),
        seed=context.seed,
        evaluation_groups=held_out[0],
        evaluation_agreement=[record.agreement for record in held_out[1]],
    )
    _run(algorithm, settings, context, chat_format)


def run_ppo(settings: PPOStage, context: StageContext) -> None:
    policy, chat_format = _policy(context.resolve(settings.policy), settings, context)
    reference = _reference(policy, settings.reference, settings, context)
    _train_adapter(policy, settings.lora, seed=context.seed)
    scores, shared = _reward_of(policy, chat_format, settings, context)
    critic = _critic(policy, scores.model, settings, shared=shared, context=context)
    generator = PolicyGenerator(policy, chat_format, batch_size=settings.generation_batch_size)

    def read_prompts(reference: str | None, what: str) -> list[Prompt]:
        limit = settings.training.max_new_tokens
        return context.with_room(_prompts(reference, context), generator, max_new_tokens=limit, what=what)

    prompts = read_prompts(settings.prompts, "prompts")
    watched = read_prompts(settings.evaluation_prompts, "held-out prompts") if settings.evaluation_prompts else prompts
    algorithm = PPO(
        policy,
        reference,
        critic,
        _as_asked(scores, settings, seed=context.seed),
        generator,
        prompts,
        [chat_format.prompt_ids(prompt) for prompt in prompts],
        config=_for_width(settings.training, policy.backbone.width, context),
        seed=context.seed,
        evaluation_prompts=watched,
        evaluation_prompt_ids=[chat_format.prompt_ids(prompt) for prompt in watched],
        judge=make_judge(settings.judge, context)[0] if settings.judge is not None else None,
    )

    def look_back() -> None:
        _alarm_of_overoptimisation(context, num_watched=len(algorithm.evaluation_prompts))
        _alarm_of_cut_answers(settings, context)
        context.tell_of_cut_texts(scores)

    _run(algorithm, settings, context, chat_format, look_back=look_back)


def _run(
    algorithm: Algorithm,
    settings: TrainingStage,
    context: StageContext,
    text_format: TextFormat,
    *,
    look_back: Callable[[], None] | None = None,
) -> None:
    """The loop, then final/: staged and renamed, so that what is there is whole.

    `look_back` is called between them, so that the card in final/ holds the alarms that it raises.
    """
    result = drive(
        algorithm,
        context.folder,
        settings=DriveSettings(
            checkpoint_every_steps=settings.checkpoint_every_steps, evaluate_every_steps=settings.evaluate_every_steps
        ),
        progress=context.progress,
        resume_command=context.resume_command,
        resume=context.resume,
    )
    if result.stopped_by is not None:
        context.progress.note(f"  stopped after step {result.steps} of {algorithm.num_steps}: {result.stopped_by}")
    if look_back is not None:
        look_back()
    staging, final = context.path / ".final.staging", context.path / "final"
    for abandoned in (staging, final):
        # Left by a process that ended before its stage was marked finished.
        if abandoned.exists():
            shutil.rmtree(abandoned)
    algorithm.trained().save(staging)
    write_format(staging, text_format)
    write_card(context.path, staging)
    staging.rename(final)
    context.folder.add_output("final", final)


def _alarm_of_overoptimisation(context: StageContext, *, num_watched: int) -> None:
    """Where the reward rose while the judge fell. The first one is said aloud; later ones tell little more."""
    rows = [
        {
            "step": float(row["step"]),
            "score": row["evaluate/score"],
            "judge": row["evaluate/judge"],
            "kl": row["evaluate/kl_policy_from_reference"],
        }
        for row in context.folder.read_metrics()
        if row.get("evaluate/judge") is not None
    ]
    if not rows:
        return
    for number, alarm in enumerate(overoptimisation_alarms(rows, num_samples=num_watched)):
        context.alarm(alarm.message, step=alarm.step, aloud=number == 0)


def _alarm_of_cut_answers(settings: PPOStage, context: StageContext) -> None:
    """Where nearly all answers were cut and therefore scored alike."""
    training = settings.training
    ended = [row["ended_share"] for row in context.folder.read_metrics() if row.get("ended_share") is not None]
    if training.missing_end_score is not None and ended and sum(ended) / len(ended) < LEAST_ENDED_SHARE:
        context.alarm(
            f"{sum(ended) / len(ended):.1%} of the sampled answers ended within max_new_tokens="
            f"{training.max_new_tokens}; every other one got missing_end_score={training.missing_end_score:g} whatever "
            "it said, so the reward model was hardly heard. Raise max_new_tokens or set training.missing_end_score=null"
        )


# Data


def _groups(
    found: Any, text_format: TextFormat, settings: TrainingStage, context: StageContext, what: str
) -> tuple[list[Any], list[Any]]:
    return context.prepare(found, text_format, max_length=settings.max_length, too_long=settings.too_long, what=what)


def _target(record: PreferencePair | LabelledText) -> float:
    return record.agreement if isinstance(record, PreferencePair) else float(record.label)


def _prompts(reference: str | None, context: StageContext) -> list[Prompt]:
    """The prompts of a file, or the one empty prompt: a text from the start token on."""
    return cast("list[Prompt]", context.read(reference, "prompts").records) if reference is not None else [""]


# Models


def _model_name(model: str | None, context: StageContext) -> str:
    name = model if model is not None else context.default_model
    if name is None:
        raise SettingsError(f"stage {context.name} names no model and the recipe has none: set model=PATH_OR_NAME")
    return context.resolve(name)


def _policy(model: str, settings: TrainingStage, context: StageContext) -> tuple[Policy, ChatFormat]:
    policy, chat_format = read_policy(
        model, precision=settings.precision or context.precision, prompt_format=settings.prompt_format
    )
    _require_positions(policy.backbone.max_length, model, settings)
    probe(policy)
    return policy, chat_format


def _require_positions(limit: int | None, model: str, settings: TrainingStage) -> None:
    if limit is not None and settings.max_length > limit:
        raise SettingsError(
            f"max_length is {settings.max_length}, but {model} has {limit} positions: set max_length={limit}"
        )


def _untrained_reward_model(
    settings: RewardStage, records: Sequence[Any], context: StageContext
) -> tuple[RewardModel, TextFormat]:
    """A decoder or an encoder, from elsewhere or new, whose output says 0."""
    precision = settings.precision or context.precision
    model: RewardModel
    text_format: TextFormat
    if settings.from_scratch is not None:
        name = f"the new {settings.from_scratch.architecture}"
        model, text_format = new_reward_model(
            settings.from_scratch, records, context, precision=precision, prompt_format=settings.prompt_format
        )
    else:
        name = _model_name(settings.model, context)
        if is_encoder(name):
            model, text_format = read_encoder(
                name, seed=context.seed, precision=precision, prompt_format=settings.prompt_format
            )
        else:
            policy, text_format = _policy(name, settings, context)
            model = ScalarModel(policy.backbone, policy.tokenizer)
    _require_positions(model.max_length, name, settings)
    if settings.lora is not None:
        if not isinstance(model, ScalarModel):
            raise SettingsError(f"{name} is an encoder, and lora adapts decoders only: leave lora out")
        model.backbone.add_adapter(REWARD, _lora_config(settings.lora, model.backbone), seed=context.seed)
        model.adapter = REWARD
    return model, text_format


def _reference(policy: Policy, model: str | None, settings: TrainingStage, context: StageContext) -> Policy:
    """The named model, or the policy as it starts; with adapters that is the policy's own backbone, adapters off."""
    if model is not None:
        reference, _ = read_policy(context.resolve(model), precision=settings.precision or context.precision)
        if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise ModelError(
                f"the reference {model} has another vocabulary than the policy, so no token can be compared"
            )
        reference.backbone.model.requires_grad_(False)
        return reference
    if settings.lora is not None:
        return Policy(policy.backbone, policy.tokenizer, adapter=None)
    return policy.reference()


SettingsType = TypeVar("SettingsType", bound=OptimizerSettings)


def _for_width(training: SettingsType, width: int, context: StageContext) -> SettingsType:
    """The settings, with learning rates scaled to the model's width where they name the width they are meant for."""
    if training.learning_rate_width is None or training.learning_rate_width == width:
        return training
    factor = training.learning_rate_width / width
    rates = {name: value for name, value in training.model_dump().items() if name in LEARNING_RATES}
    scaled = {name: value * factor for name, value in rates.items()}
    shown = ", ".join(f"{name} {value:.2g}" for name, value in scaled.items())
    context.progress.note(f"  scaled to the model's width of {width}: {shown}")
    return training.model_copy(update=scaled)


def _train_adapter(policy: Policy, lora: Lora | None, *, seed: int) -> None:
    if lora is not None:
        policy.backbone.add_adapter(POLICY, _lora_config(lora, policy.backbone), seed=seed)
        policy.adapter = POLICY


def _lora_config(lora: Lora, backbone: Backbone) -> LoraConfig:
    """PEFT's settings. Raises SettingsError for layers that the model does not have, naming those it has."""
    targets = list(lora.target_modules) if lora.target_modules else None
    # GPT-2 keeps its weights the other way round, in a layer of its own.
    is_transposed = any(isinstance(module, Conv1D) for module in backbone.body.modules())
    layers = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in backbone.body.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and ".lora_" not in name
    }
    strangers = [target for target in targets or () if target not in layers]
    if strangers:
        raise SettingsError(
            f"lora.target_modules names {', '.join(strangers)}, which {type(backbone.model).__name__} does not have: "
            f"choose among {', '.join(sorted(layers))}"
        )
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, fan_in_fan_out=is_transposed
    )


def _reward_of(
    policy: Policy, chat_format: ChatFormat, settings: PPOStage, context: StageContext
) -> tuple[ModelReward[RewardModel], bool]:
    """The reward model's scores, and whether it lives on the policy's backbone: with LoRA, where its adapter fits."""
    place = context.resolve(settings.reward_model)
    adapter = Path(place) / "adapter"
    reward_model: RewardModel
    reward_format: TextFormat
    shared = settings.lora is not None and fits(adapter, base_fingerprint(policy.backbone))
    if shared:
        head = load_adapter(policy.backbone, REWARD, adapter)
        reward_model = ScalarModel(policy.backbone, policy.tokenizer, adapter=REWARD, head=head)
        reward_format = chat_format
    else:
        reward_model, reward_format = read_reward_model(place, precision=settings.precision or context.precision)
    reward_model.freeze()
    if settings.lora is not None:
        context.progress.note(
            "  policy, critic, reference and reward model share one base"
            if shared
            else "  policy, critic and reference share one base; the reward model has another and stands alone"
        )
    return ModelReward(reward_model, reward_format, policy_format=chat_format), shared


def _as_asked(scores: ModelReward[RewardModel], settings: PPOStage, *, seed: int) -> RewardSource:
    """The scores, or a control in their place."""
    if settings.reward == "shuffled":
        return ShuffledReward(scores, seed=seed)
    return ConstantReward() if settings.reward == "constant" else scores


def _critic(
    policy: Policy, reward_model: RewardModel, settings: PPOStage, *, shared: bool, context: StageContext
) -> ScalarModel:
    """A body of its own (or an adapter on the shared one) that starts from the reward model or the policy."""
    obstacle = _obstacle(policy, reward_model, settings, shared=shared)
    if settings.critic_from == "reward_model" and obstacle:
        raise SettingsError(
            f"the critic cannot start from the reward model, because {obstacle}: set critic_from=policy"
        )
    if settings.critic_from is None and obstacle:
        context.progress.note(f"  the critic starts from the policy, because {obstacle}")
    from_reward = settings.critic_from != "policy" and not obstacle
    if settings.lora is not None:
        if from_reward:
            config = cast(LoraConfig, policy.backbone.model.peft_config[REWARD])
            policy.backbone.copy_adapter(REWARD, CRITIC, config)
        else:
            policy.backbone.add_adapter(CRITIC, _lora_config(settings.lora, policy.backbone), seed=context.seed)
        return ScalarModel(policy.backbone, policy.tokenizer, adapter=CRITIC)
    body = reward_model.backbone if from_reward and isinstance(reward_model, ScalarModel) else policy.backbone
    twin = body.frozen_copy()
    twin.model.requires_grad_(True)
    return ScalarModel(twin, policy.tokenizer)


def _obstacle(policy: Policy, reward_model: RewardModel, settings: PPOStage, *, shared: bool) -> str | None:
    """Why a critic, which reads the policy's tokens one by one, cannot start from the reward model."""
    if not isinstance(reward_model, ScalarModel):
        return "the reward model is an encoder"
    if settings.lora is not None:
        return None if shared else "the reward model is no adapter on the policy's base"
    same_tokens = reward_model.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    return None if same_tokens else "the reward model has another vocabulary than the policy"
