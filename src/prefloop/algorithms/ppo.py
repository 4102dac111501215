"""Proximal policy optimisation (PPO): a policy from scores of its own samples, held near a reference.

What is learned from what: the policy samples an answer to each prompt; a reward source scores it once, at its last
token; every token pays for its log ratio to the frozen reference; a critic turns rewards into advantages; policy and
critic learn from minibatches of the same rollout.

Source: Schulman et al. 2017, arXiv:1707.06347, equations 7 and 9, with the reward of Ziegler et al. 2019,
arXiv:1909.08593, equation 2, generalised advantages (Schulman et al. 2015, arXiv:1506.02438, equation 16), and the
details that Huang et al. 2024, arXiv:2403.17031, found to matter (missing end tokens, whitening, a critic that starts
from the reward model).

Departures from the paper:
1. Policy and critic have an optimizer each; their losses do not share a backward pass.
2. Losses are averaged over the tokens of a minibatch, not over sequences.
3. No entropy bonus: the KL term to the reference keeps the policy broad.
4. A completion without an end token gets `missing_end_score` in place of its score.
5. `kl_budget` ends the run when the policy has moved that far (nats per sequence) from the reference: past some
   distance a learned reward rises while what it stands for falls (Gao et al. 2022, arXiv:2210.10760).
6. Log-probabilities of the sampling policy are those the decode loop recorded; under bfloat16 they are recomputed,
   because two bfloat16 computations of one number differ.

Symbols: log_ratio_new_over_old compares the policy with itself at sampling time, log_ratio_policy_over_reference with
the reference; both per token, in nats.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prefloop.batches import PackedBatch, TokenGroup
from prefloop.contracts import (
    Generator,
    Measure,
    Measures,
    RewardSource,
    Sample,
    Sampling,
    StepReport,
    TrainerState,
    add_measures,
)
from prefloop.data.packing import micro_batches, pack
from prefloop.formulas.advantages import generalised_advantages, score_on_last_token, whiten
from prefloop.formulas.divergences import kl_policy_from_reference_k1, kl_policy_from_reference_k3
from prefloop.formulas.logprobs import sum_per_segment
from prefloop.formulas.policy_losses import adapted_kl_coefficient, clip_fraction, clipped_surrogate, value_loss
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel
from prefloop.models.update import (
    OptimizerSettings,
    Update,
    load_parameter_state,
    parameter_state,
    require_finite,
)
from prefloop.randomness import batch_indices, derived_seed, permutation
from prefloop.records import Completion, Prompt
from prefloop.rollouts.rollout import Rollout


class Config(OptimizerSettings):
    """The settings of PPO; the defaults are the vetted ones for small models."""

    num_steps: int = Field(default=24, gt=0)
    """Rollouts; each is followed by its updates."""
    rollouts_per_step: int = Field(default=256, gt=0)
    """Completions sampled per step."""
    epochs_per_rollout: int = Field(default=1, gt=0)
    """Passes over each rollout."""
    minibatch_size: int = Field(default=32, gt=0)
    """Completions per optimizer step."""
    max_new_tokens: int = Field(default=64, gt=0)
    """The length at which a completion is cut."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling and of every log-probability that training computes."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of the policy."""
    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    """Where both learning rates end, as a share of their peaks."""
    critic_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the critic."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which only the critic learns."""
    clip_range: float = Field(default=0.2, gt=0)
    """How far the new-over-old ratio may move before its gradient stops."""
    value_clip_range: float | None = None
    """The same for the critic's values; none leaves them free."""
    discount: float = Field(default=1.0, ge=0, le=1)
    """Gamma: what a reward one token later is worth."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda: 1 trusts returns, 0 trusts the critic."""
    whiten_advantages: bool = True
    """Scale the advantages of a whole rollout to mean 0 and variance 1."""
    kl_coefficient: float = Field(default=0.1, ge=0)
    """What a nat of log ratio to the reference costs."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """Whether the coefficient stays, or steers the KL (nats per sequence) towards `kl_target`."""
    kl_target: float = Field(default=6.0, gt=0)
    """Nats per sequence that adaptive control aims at."""
    kl_horizon: float = Field(default=10000.0, gt=0)
    """Completions over which adaptive control corrects an error."""
    kl_budget: float | None = Field(default=None, gt=0)
    """The run ends when the policy is this far (nats per sequence) from the reference."""
    update_kl_limit: float | None = Field(default=None, gt=0)
    """The updates of a rollout end when the policy is this far (nats per token) from where it sampled."""
    score_transform: Literal["none", "sigmoid"] = "none"
    """"sigmoid" turns a score into 2 * sigmoid(score), which no single completion can push far."""
    score_normalisation: Literal["none", "reference"] = "reference"
    """"reference" subtracts the mean and divides by the deviation of scores under the policy as it starts."""
    score_clip: float | None = Field(default=None, gt=0)
    """Scores are clamped to this size after normalisation."""
    missing_end_score: float | None = -3.0
    """Takes the place of the (normalised) score of a completion that was cut; none scores it as it is."""
    min_response_tokens: int = Field(default=0, ge=0)
    """Completions shorter than this pay `short_response_penalty`."""
    short_response_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of a completion that is too short."""
    bootstrap_truncated: bool = False
    """Whether the critic's value stands in for what a cut completion might still have earned."""
    num_evaluation_samples: int = Field(default=128, ge=0)
    """Completions of held-out prompts looked at in each evaluation."""


class PPO:
    """See the module's docstring. Any of policy, reference, critic and reward may share a backbone through adapters."""

    name: ClassVar[str] = "ppo"
    headline: ClassVar[tuple[str, ...]] = (
        "score",
        "kl_policy_from_reference",
        "entropy",
        "response_tokens",
        "clip_fraction",
        "value_explained",
    )

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        critic: ScalarModel,
        reward: RewardSource,
        generator: Generator,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[tuple[int, ...]],
        *,
        config: Config,
        seed: int,
        evaluation_prompts: Sequence[Prompt] = (),
        evaluation_prompt_ids: Sequence[tuple[int, ...]] = (),
        judge: RewardSource | None = None,
    ) -> None:
        self.policy, self.reference, self.critic = policy, reference, critic
        self.reward, self.generator, self.judge = reward, generator, judge
        self.prompts, self.prompt_ids = prompts, prompt_ids
        self.evaluation_prompts = evaluation_prompts[: config.num_evaluation_samples]
        self.evaluation_prompt_ids = evaluation_prompt_ids[: config.num_evaluation_samples]
        self.config = config
        self.seed = seed
        self.num_steps = config.num_steps
        self.sampling = Sampling(config.max_new_tokens, temperature=config.temperature)
        self.kl_coefficient = config.kl_coefficient
        self.score_mean, self.score_deviation = 0.0, 1.0
        updates_per_step = config.epochs_per_rollout * -(-config.rollouts_per_step // config.minibatch_size)
        num_policy_updates = max(1, config.num_steps - config.critic_warmup_steps) * updates_per_step
        self.policy_update = Update(policy.parameters(), config, num_policy_updates)
        critic_settings = config.model_copy(update={"learning_rate": config.critic_learning_rate, "warmup_steps": 0})
        self.critic_update = Update(critic.parameters(), critic_settings, config.num_steps * updates_per_step)
        if config.score_normalisation == "reference":
            self._measure_reference_scores()

    def batch(self, step: int) -> tuple[int, list[int]]:
        """The step number (sampling is drawn from it) and the rows of the prompts."""
        size = self.config.rollouts_per_step
        return step, batch_indices(self.seed, "prompts", step, length=len(self.prompts), batch_size=size)

    def step(self, batch: tuple[int, Sequence[int]]) -> StepReport:
        step, rows = batch
        rollout, rewards = self.collect(step, rows)
        rollout = self.credit(rollout, rewards)
        updates = self.learn(step, rollout)
        # Before the controller moves: the coefficient on record is the one that this rollout paid.
        measures = {**self._rollout_measures(rollout), **updates}
        kl = self._kl_per_sequence(rollout)
        if self.config.kl_control == "adaptive":
            self.kl_coefficient = adapted_kl_coefficient(
                self.kl_coefficient,
                float(kl.mean()),
                target_kl=self.config.kl_target,
                horizon=self.config.kl_horizon,
                num_samples=len(rollout.groups),
            )
        return StepReport(
            measures,
            num_tokens=sum(group.num_tokens for group in rollout.groups),
            stop_reason=self._stop_reason(float(kl.mean())),
        )

    def collect(self, step: int, rows: Sequence[int]) -> tuple[Rollout, Tensor]:
        """Samples, scores and measures; the second value is the reward of every token."""
        prompts = [self.prompts[row] for row in rows]
        random = torch.Generator().manual_seed(derived_seed(self.seed, "sampling", step))
        completions = self.generator.generate(
            [self.prompt_ids[row] for row in rows], sampling=self.sampling, random=random
        )
        groups = [
            TokenGroup(self.prompt_ids[row], (completion.token_ids or (),))
            for row, completion in zip(rows, completions, strict=True)
        ]
        scores = torch.tensor(self.reward.score(prompts, completions))
        require_finite(float(scores.sum()), "the sum of the reward source's scores")
        logprobs, references, values, end_values, segment = self._measure(groups, completions)
        rollout = Rollout(
            prompts=prompts,
            groups=groups,
            completions=completions,
            scores=scores,
            logprobs=logprobs,
            reference_logprobs=references,
            values=values,
            end_values=end_values,
            segment=segment,
            # Nothing is credited yet.
            advantages=torch.zeros_like(values),
            returns=torch.zeros_like(values),
        )
        log_ratio_policy_over_reference = kl_policy_from_reference_k1(rollout.logprobs, rollout.reference_logprobs)
        shaped = self.shaped_scores(scores, completions)
        rewards = score_on_last_token(shaped, rollout.segment, token_count=len(rollout.segment))
        return rollout, rewards - self.kl_coefficient * log_ratio_policy_over_reference

    def credit(self, rollout: Rollout, rewards: Tensor) -> Rollout:
        """The rollout with advantages and returns; the advantages are whitened over all of it."""
        cut = torch.tensor([not completion.ended for completion in rollout.completions])
        bootstrap = torch.where(cut, rollout.end_values, 0.0) if self.config.bootstrap_truncated else None
        advantages, returns = generalised_advantages(
            rewards,
            rollout.values,
            rollout.segment,
            discount=self.config.discount,
            gae_lambda=self.config.gae_lambda,
            bootstrap_values=bootstrap,
        )
        return replace(
            rollout, advantages=whiten(advantages) if self.config.whiten_advantages else advantages, returns=returns
        )

    def learn(self, step: int, rollout: Rollout) -> dict[str, Measure]:
        """The updates of one rollout: minibatches in a new order for every pass."""
        config = self.config
        measures = {"stopped_early": Measure(0.0)}
        policy_learns = step >= config.critic_warmup_steps
        if policy_learns:
            measures["learning_rate"] = Measure(self.policy_update.learning_rate())
        for epoch in range(config.epochs_per_rollout):
            order = permutation(self.seed, f"minibatches {epoch}", step, length=len(rollout.groups))
            for start in range(0, len(order), config.minibatch_size):
                members = order[start : start + config.minibatch_size]
                moved = self._learn_policy(rollout, members, measures) if policy_learns else 0.0
                self._learn_critic(rollout, members, measures)
                if config.update_kl_limit is not None and moved > config.update_kl_limit:
                    measures["stopped_early"] = Measure(1.0)
                    return measures
        return measures

    def _learn_policy(self, rollout: Rollout, members: Sequence[int], measures: dict[str, Measure]) -> float:
        """One optimizer step; returns KL(old || new) per token of this minibatch, in nats, before the step."""
        num_tokens = sum(rollout.groups[member].num_targets for member in members)
        found: dict[str, Measure] = {}
        for packed, places in self._parts(rollout, members):
            scored = self.policy.logprobs(packed, temperature=self.config.temperature)
            log_ratio_new_over_old = scored.logprobs - rollout.logprobs[places].to(scored.logprobs)
            advantages = rollout.advantages[places].to(scored.logprobs)
            losses = clipped_surrogate(log_ratio_new_over_old, advantages, clip_range=self.config.clip_range)
            self.policy_update.backward(losses.sum() / num_tokens)
            moved = log_ratio_new_over_old.detach()
            per_token = {
                "policy_loss": losses.detach(),
                "kl_old_from_new": kl_policy_from_reference_k3(torch.zeros_like(moved), moved),
                "clip_fraction": clip_fraction(moved, advantages, clip_range=self.config.clip_range),
                "entropy": scored.entropy,
            }
            add_measures(found, {name: Measure(float(one.sum()), len(one)) for name, one in per_token.items()})
            measures.setdefault("first_log_ratio_gap", Measure(float(moved.abs().max())))
        require_finite(found["policy_loss"].total, "the PPO policy loss")
        add_measures(measures, {**found, "policy_gradient_norm": Measure(self.policy_update.step())})
        return found["kl_old_from_new"].mean

    def _learn_critic(self, rollout: Rollout, members: Sequence[int], measures: dict[str, Measure]) -> None:
        num_tokens, loss_sum = sum(rollout.groups[member].num_targets for member in members), 0.0
        for packed, places in self._parts(rollout, members):
            values = self.critic.before_targets(packed)
            old_values, returns = rollout.values[places].to(values), rollout.returns[places].to(values)
            losses = value_loss(values, old_values, returns, clip_range=self.config.value_clip_range)
            self.critic_update.backward(losses.sum() / num_tokens)
            loss_sum += float(losses.detach().sum())
        require_finite(loss_sum, "the PPO value loss")
        norm = Measure(self.critic_update.step())
        add_measures(measures, {"value_loss": Measure(loss_sum, num_tokens), "critic_gradient_norm": norm})

    def _parts(self, rollout: Rollout, members: Sequence[int]) -> Iterator[tuple[PackedBatch, Tensor]]:
        """A minibatch as micro-batches, each with the places of its tokens in the rollout."""
        groups, places = [rollout.groups[member] for member in members], rollout.places(members)
        at = 0
        for part in micro_batches(groups, max_tokens=self.config.max_tokens_per_micro_batch):
            packed = pack([groups[number] for number in part])
            yield packed, places[at : at + packed.num_targets]
            at += packed.num_targets

    def shaped_scores(self, scores: Tensor, completions: Sequence[Completion]) -> Tensor:
        """Scores as the policy is paid for them: transformed, normalised, clamped, and with the two length rules."""
        config = self.config
        shaped = (self._transformed(scores) - self.score_mean) / self.score_deviation
        if config.score_clip is not None:
            shaped = shaped.clamp(-config.score_clip, config.score_clip)
        lengths = torch.tensor([len(completion.token_ids or ()) for completion in completions])
        shaped = shaped - config.short_response_penalty * (lengths < config.min_response_tokens)
        if config.missing_end_score is not None:
            ended = torch.tensor([completion.ended for completion in completions])
            shaped = torch.where(ended, shaped, torch.tensor(config.missing_end_score))
        return shaped

    def _transformed(self, scores: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(scores) if self.config.score_transform == "sigmoid" else scores

    def _measure_reference_scores(self) -> None:
        """Mean and deviation of scores on samples of the starting policy."""
        rows = batch_indices(
            self.seed, "reference prompts", 0, length=len(self.prompts), batch_size=self.config.rollouts_per_step
        )
        random = torch.Generator().manual_seed(derived_seed(self.seed, "reference sampling"))
        completions = self.generator.generate(
            [self.prompt_ids[row] for row in rows], sampling=self.sampling, random=random
        )
        scores = self._transformed(torch.tensor(self.reward.score([self.prompts[row] for row in rows], completions)))
        self.score_mean = float(scores.mean())
        deviation = float(scores.std(correction=0))
        # A reward that varies by no more than rounding has nothing to scale: it stays as flat as it is.
        rounding = 1e-6 * max(1.0, float(scores.abs().max()))
        self.score_deviation = deviation if deviation > rounding else 1.0

    @torch.no_grad()
    def _measure(self, groups: Sequence[TokenGroup], completions: Sequence[Completion]) -> tuple[Tensor, ...]:
        """Per token: log-probabilities of policy and reference, values; per completion its end's value; segments."""
        recompute = self.policy.backbone.precision != "float32"
        logprobs, references, values, end_values = [], [], [], []
        for part in micro_batches(groups, max_tokens=2 * self.config.max_tokens_per_micro_batch):
            packed = pack([groups[number] for number in part])
            if recompute:
                logprobs.append(self.policy.logprobs(packed, temperature=self.config.temperature).logprobs.cpu())
            references.append(self.reference.logprobs(packed, temperature=self.config.temperature).logprobs.cpu())
            before, at_end = self.critic.before_targets_and_at_ends(packed)
            values.append(before.cpu())
            end_values.append(at_end.cpu())
        lengths = torch.tensor([group.num_targets for group in groups])
        recorded = torch.tensor([logprob for completion in completions for logprob in completion.logprobs or ()])
        return (
            torch.cat(logprobs) if recompute else recorded,
            torch.cat(references),
            torch.cat(values),
            torch.cat(end_values),
            torch.repeat_interleave(torch.arange(len(groups)), lengths),
        )

    def _kl_per_sequence(self, rollout: Rollout) -> Tensor:
        """Sampled KL(policy || reference) of each completion, in nats."""
        per_token = kl_policy_from_reference_k1(rollout.logprobs, rollout.reference_logprobs)
        return sum_per_segment(per_token, rollout.segment, num_segments=len(rollout.groups))

    def _stop_reason(self, kl: float) -> str | None:
        budget = self.config.kl_budget
        if budget is not None and kl > budget:
            return f"the KL budget of {budget:g} nats per sequence is spent (now {kl:.2f})"
        return None

    def _rollout_measures(self, rollout: Rollout) -> dict[str, Measure]:
        num, num_tokens = len(rollout.groups), len(rollout.segment)
        kl = self._kl_per_sequence(rollout)
        k3 = kl_policy_from_reference_k3(rollout.logprobs, rollout.reference_logprobs)
        spread = float((rollout.returns - rollout.returns.mean()).square().sum())
        missed = float((rollout.returns - rollout.values).square().sum())
        return {
            "score": Measure(float(rollout.scores.sum()), num),
            "score_spread": Measure(float(rollout.scores.std(correction=0))),
            "kl_policy_from_reference": Measure(float(kl.sum()), num),
            "kl_policy_from_reference_k3": Measure(float(k3.sum()), num),
            "kl_coefficient": Measure(self.kl_coefficient),
            "response_tokens": Measure(num_tokens, num),
            "ended_share": Measure(sum(completion.ended for completion in rollout.completions), num),
            "value_explained": Measure(spread - missed, spread or 1.0),
            "return_mean": Measure(float(rollout.returns.sum()), num_tokens),
        }

    @torch.no_grad()
    def evaluate(self) -> tuple[Measures, tuple[Sample, ...]]:
        """Held-out prompts at the same random numbers every time: reward, KL, length, and what the judge says."""
        if not self.evaluation_prompts:
            return {}, ()
        prompts, ids = self.evaluation_prompts, self.evaluation_prompt_ids
        random = torch.Generator().manual_seed(derived_seed(self.seed, "evaluation sampling"))
        completions = self.generator.generate(ids, sampling=self.sampling, random=random)
        groups = [TokenGroup(one, (c.token_ids or (),)) for one, c in zip(ids, completions, strict=True)]
        logprobs, references, _, _, segment = self._measure(groups, completions)
        kl = sum_per_segment(kl_policy_from_reference_k1(logprobs, references), segment, num_segments=len(groups))
        scores = self.reward.score(prompts, completions)
        num = len(prompts)
        measures = {
            "score": Measure(sum(scores), num),
            "kl_policy_from_reference": Measure(float(kl.sum()), num),
            "response_tokens": Measure(len(segment), num),
            "ended_share": Measure(sum(completion.ended for completion in completions), num),
        }
        if self.judge is not None:
            measures["judge"] = Measure(sum(self.judge.score(prompts, completions)), num)
        shown = tuple(
            Sample(prompt, completion.text, {"score": score, "kl": float(nats), "ended": completion.ended})
            for prompt, completion, score, nats in zip(prompts[:8], completions, scores, kl, strict=False)
        )
        return measures, shown

    def state(self) -> TrainerState:
        return {
            "policy": parameter_state(self.policy.parameters()),
            "critic": parameter_state(self.critic.parameters()),
            "policy_update": self.policy_update.state(),
            "critic_update": self.critic_update.state(),
            "kl_coefficient": self.kl_coefficient,
            "score_mean": self.score_mean,
            "score_deviation": self.score_deviation,
        }

    def load_state(self, state: TrainerState) -> None:
        load_parameter_state(self.policy.parameters(), state["policy"])
        load_parameter_state(self.critic.parameters(), state["critic"])
        self.policy_update.load_state(state["policy_update"])
        self.critic_update.load_state(state["critic_update"])
        self.kl_coefficient = float(state["kl_coefficient"])
        self.score_mean, self.score_deviation = float(state["score_mean"]), float(state["score_deviation"])

    def trained(self) -> Policy:
        return self.policy
