"""What a recipe may say: the pipeline, its stages, and where a model comes from.

A stage's inputs are named by stage: `sft` means the model that stage trained, `prepare/train.jsonl` a file it wrote.
Anything else is a path or a Hub name.
"""

from typing import Annotated, Literal

from pydantic import Field

from prefloop.algorithms import dpo, ppo, reward_modelling, sft
from prefloop.contracts import Settings
from prefloop.data.post_filters import PostFilters
from prefloop.data.vote_pairs import PairRules
from prefloop.models.from_scratch import Architecture, EncoderArchitecture

Precision = Literal["float32", "bfloat16"]
PromptFormat = Literal["auto", "chat", "plain", "raw"]
TooLong = Literal["drop", "truncate", "error"]
RecordKind = Literal["text", "demonstrations", "pairs", "labelled", "prompts"]


class ModelSizes(Settings):
    """How large a model is that is made on the spot, and its tokenizer."""

    hidden_size: int = Field(default=128, gt=0)
    """Width of the hidden states."""
    intermediate_size: int | None = None
    """Width inside the feed-forward layers; none takes four times the hidden size."""
    num_layers: int = Field(default=2, gt=0)
    """Transformer layers."""
    num_heads: int = Field(default=4, gt=0)
    """Attention heads."""
    max_length: int = Field(default=256, gt=1)
    """Positions of the model, in tokens."""
    vocabulary_size: int = Field(default=1536, gt=261)
    """Byte-pair tokens, special tokens and bytes included."""
    sentence_min_count: int | None = Field(default=None, gt=0)
    """Sentences that occur so often become one token each; none leaves them in words."""


class FromScratch(ModelSizes):
    """A small model made on the spot, with a tokenizer trained on the stage's data."""

    architecture: Architecture = "llama"
    """The Hugging Face architecture."""


class RewardFromScratch(ModelSizes):
    """A small reward model made on the spot, with a tokenizer of its own trained on the stage's data."""

    architecture: EncoderArchitecture | Architecture = "distilbert"
    """The Hugging Face architecture: an encoder, or a decoder."""


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) instead of training every weight."""

    rank: int = Field(default=8, gt=0)
    """Rank of the update."""
    alpha: int = Field(default=16, gt=0)
    """The update is scaled by alpha / rank."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers to adapt; none takes PEFT's choice for the architecture."""


class Stage(Settings):
    """What every stage has."""

    seed: int | None = None
    """Seed of this stage; none takes the pipeline's."""


class TrainingStage(Stage):
    """What every stage has that trains a model."""

    prompt_format: PromptFormat | None = None
    """How prompts are laid out; none takes what the model was trained with here, or "auto"."""
    max_length: int = Field(default=512, gt=1)
    """Longest prompt with response, in tokens."""
    too_long: TooLong = "drop"
    """What happens to longer rows: drop, truncate (the prompt from the left) or error."""
    lora: Lora | None = None
    """Train low-rank adapters instead of every weight."""
    precision: Precision | None = None
    """Computing precision; none takes the pipeline's."""
    checkpoint_every_steps: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; none saves a checkpoint only when the run is interrupted."""
    evaluate_every_steps: int | None = Field(default=None, gt=0)
    """Steps between evaluations; none evaluates before and after training only."""


class World(Stage):
    """The embedded world: demonstrations with flaws at known rates, and questions, some of them held out."""

    kind: Literal["world"]
    num_demonstrations: int = Field(default=5000, gt=0)
    """Answers to imitate."""
    held_out_share: float = Field(default=1 / 3, gt=0, lt=1)
    """Share of the questions that no training stage sees."""


class Prepare(Stage):
    """Reads a data set, drops what cannot be used and counts it, splits by prompt, writes JSONL."""

    kind: Literal["prepare"]
    source: str | None = None
    """A file, a folder or a Hub data set; none takes the pipeline's `data`."""
    records: RecordKind
    """What each row is."""
    columns: dict[str, str] | None = None
    """Our column names to the file's, where they differ."""
    split: str | None = None
    """Which split of the source to read."""
    split_if_unlabelled: str | None = None
    """The split to read instead when the first one holds no usable label (some public test sets hide theirs)."""
    limit: int | None = Field(default=None, gt=0)
    """Rows to read at most."""
    max_words: int | None = Field(default=None, gt=0)
    """Rows with more words than this in the prompt and its longest answer together are dropped and counted."""
    shares: dict[str, float] = Field(default_factory=lambda: {"train": 1.0})
    """Output files and their shares of the prompts."""


class PreparePosts(Stage):
    """Reads dumps of posts and replies: prompts, answers to imitate, and pairs in which votes say what is better.

    For each share NAME it writes NAME_prompts, NAME_demonstrations, NAME_summaries, NAME_pairs, NAME_comparisons and
    NAME_labelled, each .jsonl, split by post.
    """

    kind: Literal["prepare_posts"]
    sources: tuple[str, ...] = ()
    """Dumps, and folders of dumps (.jsonl, .gz, .zst): Reddit submissions and comments, Stack Exchange questions with
    their answers; none takes the pipeline's `data`."""
    filters: PostFilters = PostFilters()
    """Which posts and replies are used."""
    pair_rules: PairRules = PairRules()
    """How replies to one post make pairs."""
    prompt: Literal["title", "title_and_text"] = "title_and_text"
    """What of a post is the prompt."""
    demonstrations_per_post: int = Field(default=1, ge=0)
    """Answers of each post to imitate: those with most votes."""
    least_demonstration_score: int = 1
    """Votes that an answer to imitate must have."""
    shares: dict[str, float] = Field(default_factory=lambda: {"train": 0.9, "test": 0.1})
    """Names and their shares of the posts."""


class Collect(Stage):
    """Two completions per prompt, from one policy or from two."""

    kind: Literal["collect"]
    policy: str
    """The model that answers."""
    other_policy: str | None = None
    """A second model: each pair then has one answer of either."""
    prompts: str
    """Prompts to answer."""
    num_pairs: int = Field(default=4000, gt=0)
    """Prompts asked; each gives one pair, or none when its answers are all equal."""
    candidates_per_prompt: int = Field(default=2, ge=2)
    """Answers drawn per prompt, half of them by each of two writers; the two that differ most make the pair."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Where an answer is cut."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    other_temperature: float | None = Field(default=None, gt=0)
    """Of the second answer's sampling, where it differs: one model at two settings, or each of two at its own."""
    reward_models: tuple[str, ...] = ()
    """Score the answers: one gives each pair its margin, several their disagreement too, to order the queue by."""
    batch_size: int = Field(default=256, gt=0)
    """Answers decoded together."""

    @property
    def has_two_writers(self) -> bool:
        return self.other_policy is not None or self.other_temperature is not None


class Contrast(Stage):
    """Preferences out of demonstrations: the data set's answer is accepted, a policy's own answer rejected.

    Every prompt is asked once and counted: kept, equal to the data set's answer, empty, cut, too long, or unreadable.
    """

    kind: Literal["contrast"]
    policy: str
    """The model whose answers are rejected."""
    demonstrations: str
    """Prompts with the answers that are accepted."""
    num_prompts: int | None = Field(default=None, gt=0)
    """Prompts asked, the first of the file; none asks all."""
    max_length: int = Field(default=512, gt=1)
    """Longest prompt with either answer, in the policy's tokens; longer rows are left out."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Where a sampled answer is cut."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    cut_answers: Literal["drop", "keep"] = "drop"
    """What happens to a sampled answer that was cut: its missing end would give it away."""
    reward_model: str | None = None
    """Chooses which of the two answers is accepted, by its score; none accepts the data set's."""
    batch_size: int = Field(default=256, gt=0)
    """Answers decoded together."""


class Label(Stage):
    """Annotators choose between the two completions of every pair.

    Simulated ones are three characters who know the tutorials world's rubric: in this process, or over HTTP through the
    very server that people use. People do it in the browser. Votes are what people chose elsewhere: the voters of a
    pair are one annotator, whoever asked and accepted one of the two answers another, and simulated readers of the
    votes are named as such.
    """

    kind: Literal["label"]
    comparisons: str
    """Pairs to label."""
    by: Literal["simulated", "simulated_over_http", "people", "votes"] = "simulated"
    """Who chooses."""
    slope: float = Field(default=3.0, gt=0)
    """How sharply a difference in gold score (of simulated readers: in the logarithm of votes) decides: the slope of
    Bradley-Terry noise. Simulated annotators only."""
    simulated_readers: int = Field(default=0, ge=0)
    """Simulated annotators who read the votes and err the more, the closer these are. Votes only."""
    annotators_per_pair: int = Field(default=1, ge=1)
    """How many people choose between the answers of each pair. People only; of simulated annotators all three do."""
    enough_pairs: int = Field(default=20, ge=1)
    """Labelled pairs after which the run goes on. People only."""
    guidelines: str = ""
    """Shown beside the pairs. People only."""
    aggregation: Literal["majority", "dawid_skene"] = "majority"
    """How several people's choices make one preference."""


class Judge(Settings):
    """Who says whether a completion is a success. No training stage may read it."""

    kind: Literal["rubric", "text_classifier", "reward_model"]
    """The tutorials world's rubric, a TF-IDF classifier fitted on labelled texts, or a reward model: a success is
    then the share of four other answers of the reference to the same prompt that an answer outscores."""
    train: tuple[str, ...] = ()
    """Labelled texts the classifier is fitted on. Where these answer prompts, it reads answers only."""
    test: str | tuple[str, ...] | None = None
    """Labelled texts (of a reward model: pairs) its own accuracy is stated on."""
    reward_model: str | None = None
    """The reward model that judges; one that was trained on other pairs than the policies learned from."""
    name: str = "judge"
    """What the report calls it."""

    @property
    def test_files(self) -> tuple[str, ...]:
        return (self.test,) if isinstance(self.test, str) else self.test or ()


class EvaluatePolicies(Stage):
    """Samples every policy on held-out prompts and lets the judge count successes."""

    kind: Literal["evaluate_policies"]
    policies: dict[str, str]
    """Names to models; the one called `reference` in `reference` is what KL is measured from."""
    reference: str
    """The name of the policy that KL is measured from."""
    prompts: str | None = None
    """Held-out prompts; none asks for texts that begin at the start token."""
    num_samples: int = Field(default=748, gt=1)
    """Completions per policy; prompts repeat when there are fewer."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Where an answer is cut."""
    judge: Judge
    """Who says what a success is."""
    second_judge: Judge | None = None
    """Another opinion, reported beside the first."""
    greedy: tuple[str, ...] = ()
    """Policies that are also evaluated without sampling, as `<name>_greedy`."""
    reward_model: str | None = None
    """Scores every completion, and picks the best of n."""
    best_of_n: int | None = Field(default=None, ge=2)
    """Also evaluate the reference's best of n by the reward model, as `best_of_n`."""
    num_shown: int = Field(default=6, ge=0)
    """Prompts whose answers are shown side by side."""


class EvaluateReward(Stage):
    """How well a reward model orders held-out pairs, or classifies held-out texts."""

    kind: Literal["evaluate_reward"]
    reward_model: str
    """The model to look at."""
    comparisons: str | None = None
    """Held-out pairs, ordered by the gold score (gold ties are left out and counted)."""
    pairs: str | None = None
    """Held-out preference pairs, or labelled texts."""
    train_pairs: tuple[str, ...] = ()
    """The pairs that surface baselines (length, bag of words) are fitted on."""
    label_agreement: float | None = Field(default=None, ge=0, le=1)
    """How often two people choose the same answer of such a pair: sets the ceiling that label noise allows."""
    agreement_of: str | None = None
    """Takes it from a label stage instead: its `agreement.json`."""
    reported_as: str | None = None
    """Names the figures among `reward_models` of the summary; none makes them the summary's `reward_model`."""


class SFTStage(TrainingStage):
    """Supervised fine-tuning."""

    kind: Literal["sft"]
    model: str | None = None
    """The model to start from; none takes the pipeline's `model`, unless `from_scratch` is set."""
    from_scratch: FromScratch | None = None
    """Make a small model instead."""
    train: tuple[str, ...] = Field(min_length=1)
    """Files of texts or demonstrations."""
    evaluate: str | None = None
    """Held-out texts or demonstrations."""
    records: Literal["text", "demonstrations"] = "demonstrations"
    """What the rows are."""
    training: sft.Config = sft.Config()
    """Settings of the algorithm."""


class RewardStage(TrainingStage):
    """Reward modelling on pairs, or on single texts with a label."""

    kind: Literal["reward_modelling"]
    model: str | None = None
    """The model whose body the reward model starts from, a decoder or an encoder; none takes the pipeline's `model`,
    unless `from_scratch` is set."""
    from_scratch: RewardFromScratch | None = None
    """Make a small model instead."""
    train: tuple[str, ...] = Field(min_length=1)
    """Files of preference pairs or labelled texts."""
    evaluate: str | None = None
    """Held-out pairs or labelled texts."""
    records: Literal["pairs", "labelled"] = "pairs"
    """What the rows are."""
    training: reward_modelling.Config = reward_modelling.Config()
    """Settings of the algorithm."""


class DPOStage(TrainingStage):
    """Direct preference optimisation on pairs."""

    kind: Literal["dpo"]
    policy: str
    """The model to start from."""
    reference: str | None = None
    """The model that the policy is measured against; none takes `policy` as it starts."""
    train: tuple[str, ...] = Field(min_length=1)
    """Files of preference pairs."""
    evaluate: str | None = None
    """Held-out pairs."""
    training: dpo.Config = dpo.Config()
    """Settings of the algorithm."""


class PPOStage(TrainingStage):
    """Proximal policy optimisation against a reward model."""

    kind: Literal["ppo"]
    policy: str
    """The model to start from."""
    reference: str | None = None
    """The model that KL is measured from; none takes `policy` as it starts."""
    reward_model: str
    """The model that scores completions."""
    reward: Literal["model", "shuffled", "constant"] = "model"
    """The scores as they are, or a control: handed to the wrong completions, or all the same."""
    critic_from: Literal["reward_model", "policy"] | None = None
    """Whose body the critic starts from; its head starts at zero. None takes the reward model's where the critic can
    run on it (a decoder with the policy's tokens, or an adapter on its base), and else the policy's."""
    prompts: str | None = None
    """Prompts to answer; none asks for texts that begin at the start token."""
    evaluation_prompts: str | None = None
    """Held-out prompts looked at while training."""
    judge: Judge | None = None
    """Watches over the evaluations and raises the alarm; it decides nothing."""
    generation_batch_size: int = Field(default=256, gt=0)
    """Completions decoded together."""
    training: ppo.Config = ppo.Config()
    """Settings of the algorithm."""


AnyStage = Annotated[
    World
    | Prepare
    | PreparePosts
    | Collect
    | Contrast
    | Label
    | SFTStage
    | RewardStage
    | DPOStage
    | PPOStage
    | EvaluateReward
    | EvaluatePolicies,
    Field(discriminator="kind"),
]


class Pipeline(Settings):
    """A recipe: stages in order, each naming the ones it builds on."""

    name: str
    """Names the run's folder."""
    description: str = ""
    """One line for the plan and the report."""
    seed: int = 0
    """Every random draw of every stage comes from it."""
    model: str | None = None
    """The model that stages start from when they name none."""
    data: str | None = None
    """The data that stages read when they name none."""
    precision: Precision = "float32"
    """Computing precision; bfloat16 is faster where the processor has it, and rounds."""
    stages: dict[str, AnyStage] = Field(min_length=1)
    """What happens, in this order."""
    next_commands: tuple[str, ...] = ()
    """Printed at the end; {folder} stands for the run's folder."""
    license: str | None = None
    """The licence of the trained models, for their cards; none says "unknown"."""


class Recipe(Settings):
    """A recipe of one training stage, for `prefloop train`."""

    name: str
    """Names the run's folder."""
    seed: int = 0
    """Every random draw comes from it."""
    model: str | None = None
    """The model to start from when the stage names none."""
    precision: Precision = "float32"
    """Computing precision."""
    license: str | None = None
    """The licence of the trained model, for its card; none says "unknown"."""
    stage: Annotated[SFTStage | RewardStage | DPOStage | PPOStage, Field(discriminator="kind")]
    """What to train."""
