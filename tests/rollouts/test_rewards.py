"""Scores: read from shared tokens or from text, and two controls that nothing can be learned from."""

import pytest
import torch

from prefloop.data.chat_format import ChatFormat
from prefloop.models.backbone import Backbone
from prefloop.models.from_scratch import new_model, train_tokenizer
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Completion, Message, Prompt
from prefloop.rollouts.rewards import ConstantReward, ModelReward, RuleReward, ShuffledReward

TOKENIZER = train_tokenizer(["one two three four"], vocabulary_size=280)
FORMAT = ChatFormat(TOKENIZER)
PROMPTS: list[Prompt] = [
    (Message("user", "one two"),),
    (Message("user", "three"),),
    (Message("system", "four"), Message("user", "one")),
    (Message("user", "one two three four one two three four"),),
]
TEXTS = ["two three", "one", "four four four four", "two"]


def _model() -> ScalarModel:
    backbone = Backbone(
        new_model("llama", TOKENIZER, hidden_size=32, num_layers=1, num_heads=4, max_length=128, seed=0)
    )
    model = ScalarModel(backbone, TOKENIZER)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    return model


def _sampled(text: str, *, ended: bool = True) -> Completion:
    ids = FORMAT.completion_ids(text, ended=ended)
    return Completion(text, ended=ended, token_ids=ids, logprobs=(0.0,) * len(ids))


def test_shared_tokens_and_text_give_the_same_score() -> None:
    model = _model()
    completions = [_sampled(text, ended=number != 1) for number, text in enumerate(TEXTS)]
    same = ChatFormat(train_tokenizer(["one two three four"], vocabulary_size=280))
    shared = ModelReward(model, FORMAT, policy_format=same)
    by_text = ModelReward(model, FORMAT)
    assert (shared.shares_tokens, by_text.shares_tokens) == (True, False)
    one, other = (source.score(PROMPTS, completions) for source in (shared, by_text))
    assert one == pytest.approx(other, abs=1e-5)
    assert len({round(score, 3) for score in one}) == len(TEXTS)


def test_another_vocabulary_goes_through_the_text() -> None:
    other = train_tokenizer(["one two three four"], vocabulary_size=280)
    other.add_tokens(["five"])
    source = ModelReward(_model(), FORMAT, policy_format=ChatFormat(other))
    assert not source.shares_tokens
    foreign = Completion("one", token_ids=(9, 9, 9), logprobs=(0.0,) * 3)
    assert source.score(PROMPTS[:1], [foreign]) == pytest.approx(source.score(PROMPTS[:1], [Completion("one")]))


def test_the_sampled_tokens_are_read_as_they_stand() -> None:
    """Another way to spell the same text is another sequence, and the policy is paid for what it sampled."""
    model = _model()
    source = ModelReward(model, FORMAT, policy_format=FORMAT)
    letters = (*(FORMAT.completion_ids(letter, ended=False)[0] for letter in "one"), FORMAT.eos_id)
    spelled = Completion("one", token_ids=letters, logprobs=(0.0,) * len(letters))
    assert letters != FORMAT.completion_ids("one")
    assert source.group(PROMPTS[0], spelled).responses == (letters,)


def test_a_cut_response_is_scored_without_an_end_token() -> None:
    for source in (ModelReward(_model(), FORMAT, policy_format=FORMAT), ModelReward(_model(), FORMAT)):
        for ended in (True, False):
            (response,) = source.group(PROMPTS[0], _sampled("two three", ended=ended)).responses
            assert (response[-1] == FORMAT.eos_id) == ended
        ended_score, cut_score = source.score(
            PROMPTS[:1] * 2, [_sampled("two three"), _sampled("two three", ended=False)]
        )
        assert abs(ended_score - cut_score) > 1e-3


def test_scores_come_back_in_the_order_of_the_completions_whatever_the_parts() -> None:
    model = _model()
    completions = [_sampled(text) for text in TEXTS]
    whole = ModelReward(model, FORMAT).score(PROMPTS, completions)
    parts = ModelReward(model, FORMAT, max_tokens_per_micro_batch=1).score(PROMPTS, completions)
    assert parts == pytest.approx(whole, abs=1e-5)
    backwards = ModelReward(model, FORMAT).score(PROMPTS[::-1], completions[::-1])
    assert backwards[::-1] == pytest.approx(whole, abs=1e-5)


def test_an_empty_response_that_was_cut_has_a_score() -> None:
    scores = ModelReward(_model(), FORMAT).score(PROMPTS[:1], [Completion("", ended=False)])
    assert scores == pytest.approx(ModelReward(_model(), FORMAT).score(PROMPTS[:1], [Completion("")]))


def test_a_rule_sees_prompt_and_completion() -> None:
    rule = RuleReward(lambda prompt, completion: float(len(prompt)) + len(completion.text))
    assert rule.score(PROMPTS[2:], [Completion("abc"), Completion("")]) == [5.0, 1.0]
    with pytest.raises(ValueError):
        rule.score(PROMPTS, [Completion("abc")])


def test_shuffling_keeps_the_scores_and_changes_their_places() -> None:
    source = RuleReward(lambda prompt, completion: float(completion.text))
    completions = [Completion(str(number)) for number in range(50)]
    prompts: list[Prompt] = ["p"] * 50
    shuffled = ShuffledReward(source, seed=1)
    scores = shuffled.score(prompts, completions)
    assert sorted(scores) == [float(number) for number in range(50)]
    assert sum(score == number for number, score in enumerate(scores)) < 10
    assert shuffled.score(prompts, completions) == scores, "no state: a resumed run shuffles as it would have"
    assert ShuffledReward(source, seed=2).score(prompts, completions) != scores
    others = [Completion(str(number)) for number in range(1, 51)]
    assert [score - 1 for score in shuffled.score(prompts, others)] != scores, "other completions, another order"


def test_a_constant_reward_is_zero_for_every_completion() -> None:
    assert ConstantReward().score(PROMPTS, [Completion(text) for text in TEXTS]) == [0.0] * 4
