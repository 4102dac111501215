"""The stages that train: they put an algorithm together from settings and hand it to the loop."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from peft import LoraConfig

from prefloop.algorithms.dpo import DPO
from prefloop.algorithms.ppo import PPO
from prefloop.algorithms.reward_modelling import RewardModelling
from prefloop.algorithms.sft import SFT
from prefloop.contracts import Algorithm, RewardSource
from prefloop.data.chat_format import ChatFormat
from prefloop.errors import ModelError, SettingsError
from prefloop.evaluation.overoptimisation import overoptimisation_alarms
from prefloop.models.adapters import base_fingerprint, fits, load_adapter, save_adapter
from prefloop.models.backbone import Backbone
from prefloop.models.from_scratch import new_model, train_tokenizer
from prefloop.models.policy import Policy, probe
from prefloop.models.scalar_heads import ScalarModel
from prefloop.models.update import OptimizerSettings
from prefloop.records import Demonstration, LabelledText, PreferencePair, Prompt, TextExample, prompt_text
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import ConstantReward, ModelReward, ShuffledReward
from prefloop.runs.drive import DriveSettings, drive
from prefloop.runs.judges import make_judge
from prefloop.runs.stage_context import (
    StageContext,
    device,
    read_format,
    read_policy,
    read_reward_model,
    write_format,
)
from prefloop.runs.stage_settings import (
    DPOStage,
    FromScratch,
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


def run_sft(settings: SFTStage, context: StageContext) -> None:
    found = context.read_all(settings.train, settings.records)
    if settings.from_scratch is not None:
        policy, chat_format = _from_scratch(settings.from_scratch, settings, found.records, context)
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
        config=_for_width(settings.training, policy.backbone, context),
        seed=context.seed,
        evaluation_groups=held_out,
    )
    _run(algorithm, settings, context, chat_format)


def run_reward_modelling(settings: RewardStage, context: StageContext) -> None:
    source = _model_name(settings.model, context)
    policy, chat_format = _policy(source, settings, context)
    model = ScalarModel(policy.backbone, policy.tokenizer)
    fingerprint = base_fingerprint(policy.backbone) if settings.lora else ""
    if settings.lora is not None:
        model.backbone.add_adapter(REWARD, _lora_config(settings.lora), seed=context.seed)
        model.adapter = REWARD
    groups, kept = _groups(
        context.read_all(settings.train, settings.records), chat_format, settings, context, "training data"
    )
    held_out: tuple[list[Any], list[Any]] = ([], [])
    if settings.evaluate is not None:
        found = context.read(settings.evaluate, settings.records)
        held_out = _groups(found, chat_format, settings, context, "held-out data")
    algorithm = RewardModelling(
        model,
        groups,
        [_target(record) for record in kept],
        config=_for_width(settings.training, policy.backbone, context),
        seed=context.seed,
        evaluation_groups=held_out[0],
        evaluation_targets=[_target(record) for record in held_out[1]],
        language_model=Policy(policy.backbone, policy.tokenizer, adapter=model.adapter),
    )
    _run(algorithm, settings, context, chat_format)
    if model.adapter is not None:
        save_adapter(
            model.backbone, REWARD, context.path / "final" / "adapter", head=model.head, fingerprint=fingerprint
        )


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
        config=_for_width(settings.training, policy.backbone, context),
        seed=context.seed,
        evaluation_groups=held_out[0],
        evaluation_agreement=[record.agreement for record in held_out[1]],
    )
    _run(algorithm, settings, context, chat_format)


def run_ppo(settings: PPOStage, context: StageContext) -> None:
    policy, chat_format = _policy(context.resolve(settings.policy), settings, context)
    reference = _reference(policy, settings.reference, settings, context)
    _train_adapter(policy, settings.lora, seed=context.seed)
    critic, reward = _critic_and_reward(policy, chat_format, settings, context)
    prompts = _prompts(settings.prompts, context)
    watched = _prompts(settings.evaluation_prompts, context) if settings.evaluation_prompts else prompts
    algorithm = PPO(
        policy,
        reference,
        critic,
        reward,
        PolicyGenerator(policy, chat_format, batch_size=settings.generation_batch_size),
        prompts,
        [chat_format.prompt_ids(prompt) for prompt in prompts],
        config=_for_width(settings.training, policy.backbone, context),
        seed=context.seed,
        evaluation_prompts=watched,
        evaluation_prompt_ids=[chat_format.prompt_ids(prompt) for prompt in watched],
        judge=make_judge(settings.judge, context)[0] if settings.judge is not None else None,
    )
    _run(algorithm, settings, context, chat_format)
    _raise_alarms(context, num_watched=len(algorithm.evaluation_prompts))


def _run(algorithm: Algorithm, settings: TrainingStage, context: StageContext, chat_format: ChatFormat) -> None:
    """The loop, then final/: staged and renamed, so that what is there is whole."""
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
    staging, final = context.path / ".final.staging", context.path / "final"
    for abandoned in (staging, final):
        # Left by a process that ended before its stage was marked finished.
        if abandoned.exists():
            shutil.rmtree(abandoned)
    algorithm.trained().save(staging)
    write_format(staging, chat_format)
    staging.rename(final)
    context.folder.add_output("final", final)


def _raise_alarms(context: StageContext, *, num_watched: int) -> None:
    """Writes alarms.json, and says it aloud when the reward rose while the judge fell."""
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
    alarms = overoptimisation_alarms(rows, num_samples=num_watched)
    listed = [{"stage": context.name, "step": alarm.step, "message": alarm.message} for alarm in alarms]
    context.write_json("alarms.json", listed)
    for alarm in alarms[:1]:
        context.progress.warn(f"ALARM in {context.name}: {alarm.message}")


# Data


def _groups(
    found: Any, chat_format: ChatFormat, settings: TrainingStage, context: StageContext, what: str
) -> tuple[list[Any], list[Any]]:
    return context.prepare(found, chat_format, max_length=settings.max_length, too_long=settings.too_long, what=what)


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
    limit = policy.backbone.max_length
    if limit is not None and settings.max_length > limit:
        raise SettingsError(
            f"max_length is {settings.max_length}, but {model} has {limit} positions: set max_length={limit}"
        )
    probe(policy)
    return policy, chat_format


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


def _for_width(training: SettingsType, backbone: Backbone, context: StageContext) -> SettingsType:
    """The settings, with learning rates scaled to the model's width where they name the width they are meant for."""
    if training.learning_rate_width is None or training.learning_rate_width == backbone.width:
        return training
    factor = training.learning_rate_width / backbone.width
    rates = {name: value for name, value in training.model_dump().items() if name in LEARNING_RATES}
    scaled = {name: value * factor for name, value in rates.items()}
    shown = ", ".join(f"{name} {value:.2g}" for name, value in scaled.items())
    context.progress.note(f"  scaled to the model's width of {backbone.width}: {shown}")
    return training.model_copy(update=scaled)


def _train_adapter(policy: Policy, lora: Lora | None, *, seed: int) -> None:
    if lora is not None:
        policy.backbone.add_adapter(POLICY, _lora_config(lora), seed=seed)
        policy.adapter = POLICY


def _lora_config(lora: Lora) -> LoraConfig:
    targets = list(lora.target_modules) if lora.target_modules else None
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)


def _critic_and_reward(
    policy: Policy, chat_format: ChatFormat, settings: PPOStage, context: StageContext
) -> tuple[ScalarModel, RewardSource]:
    """The critic and the scores. With LoRA both live on the policy's backbone where the reward model's adapter fits."""
    precision = settings.precision or context.precision
    place = context.resolve(settings.reward_model)
    adapter = Path(place) / "adapter"
    shared = settings.lora is not None and fits(adapter, base_fingerprint(policy.backbone))
    if shared:
        head = load_adapter(policy.backbone, REWARD, adapter)
        reward_model = ScalarModel(policy.backbone, policy.tokenizer, adapter=REWARD, head=head)
        reward_format = chat_format
    else:
        reward_model, reward_format = read_reward_model(place, precision=precision)
    reward_model.head.requires_grad_(False)
    critic = _critic(policy, reward_model, settings, shared=shared, seed=context.seed)
    if not shared:
        reward_model.backbone.model.requires_grad_(False)
    if settings.lora is not None:
        context.progress.note(
            "  policy, critic, reference and reward model share one base"
            if shared
            else "  policy, critic and reference share one base; the reward model has another and stands alone"
        )
    source: RewardSource = ModelReward(reward_model, reward_format, policy_format=chat_format)
    if settings.reward == "shuffled":
        source = ShuffledReward(source, seed=context.seed)
    if settings.reward == "constant":
        source = ConstantReward()
    return critic, source


def _critic(policy: Policy, reward_model: ScalarModel, settings: PPOStage, *, shared: bool, seed: int) -> ScalarModel:
    """A body of its own (or an adapter on the shared one) that starts from the reward model or the policy."""
    from_reward = settings.critic_from == "reward_model"
    if settings.lora is not None:
        config = _lora_config(settings.lora)
        if from_reward and shared:
            config = cast(LoraConfig, policy.backbone.model.peft_config[REWARD])
            policy.backbone.copy_adapter(REWARD, CRITIC, config)
        else:
            policy.backbone.add_adapter(CRITIC, config, seed=seed)
        return ScalarModel(policy.backbone, policy.tokenizer, adapter=CRITIC)
    same_tokens = reward_model.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    if from_reward and not same_tokens:
        raise SettingsError("the reward model has another vocabulary than the policy: set critic_from=policy")
    body = reward_model.backbone if from_reward else policy.backbone
    twin = body.frozen_copy()
    twin.model.requires_grad_(True)
    return ScalarModel(twin, policy.tokenizer)


def _from_scratch(
    scratch: FromScratch, settings: SFTStage, records: Sequence[Any], context: StageContext
) -> tuple[Policy, ChatFormat]:
    """A tokenizer trained on the texts, and a model with random weights for it."""
    texts = [text for record in records for text in _texts(record)]
    tokenizer = train_tokenizer(
        texts, vocabulary_size=scratch.vocabulary_size, sentence_min_count=scratch.sentence_min_count
    )
    model = new_model(
        scratch.architecture,
        tokenizer,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_layers=scratch.num_layers,
        num_heads=scratch.num_heads,
        max_length=scratch.max_length,
        seed=context.seed,
    )
    num = sum(parameter.numel() for parameter in model.parameters())
    context.progress.note(f"  a new {scratch.architecture} of {num:,} parameters, {len(tokenizer):,} tokens")
    backbone = Backbone(model.to(device()), precision=settings.precision or context.precision)  # type: ignore[arg-type]
    return Policy(backbone, tokenizer), read_format("", tokenizer, settings.prompt_format)


def _texts(record: TextExample | Demonstration) -> list[str]:
    return [record.text] if isinstance(record, TextExample) else [prompt_text(record.prompt), record.completion]
