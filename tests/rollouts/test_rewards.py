"""Scores: read from shared tokens or from text, and two controls that nothing can be learned from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prefloop.batches import TokenGroup
from prefloop.data.chat_format import ChatFormat
from prefloop.data.encoder_format import EncoderFormat
from prefloop.data.padding import pad
from prefloop.models.backbone import Backbone
from prefloop.models.encoder_rewards import EncoderRewardModel
from prefloop.models.from_scratch import new_encoder, new_model, train_encoder_tokenizer, train_tokenizer
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


def _model(max_length: int = 128) -> ScalarModel:
    backbone = Backbone(
        new_model("llama", TOKENIZER, hidden_size=32, num_layers=1, num_heads=4, max_length=max_length, seed=0)
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


def _encoder(max_length: int = 128) -> ModelReward[EncoderRewardModel]:
    tokenizer = train_encoder_tokenizer(["one two three four"], "bert", vocabulary_size=280, max_length=max_length)
    model = new_encoder("bert", tokenizer, hidden_size=32, num_layers=1, num_heads=4, max_length=max_length, seed=0)
    encoder = EncoderRewardModel(model, tokenizer)
    with torch.no_grad():
        encoder.output.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    return ModelReward(encoder, EncoderFormat(tokenizer), policy_format=FORMAT)


def test_an_encoder_reads_the_text_in_its_own_tokens() -> None:
    source = _encoder()
    assert not source.shares_tokens
    completions = [_sampled(text, ended=number != 1) for number, text in enumerate(TEXTS)]
    foreign = [Completion(one.text, ended=one.ended, token_ids=(9, 9, 9)) for one in completions]
    scores = source.score(PROMPTS, completions)
    assert source.score(PROMPTS, foreign) == scores
    for score, prompt, one in zip(scores, PROMPTS, completions, strict=True):
        text_format = source.text_format
        ids = text_format.completion_ids(one.text, ended=one.ended)
        with torch.no_grad():
            alone = source.model.at_ends(pad([TokenGroup(text_format.prompt_ids(prompt), (ids,))]))
        assert score == pytest.approx(float(alone), abs=1e-5)
    assert len({round(score, 3) for score in scores}) == len(TEXTS)
    assert source.score(PROMPTS[::-1], completions[::-1]) == pytest.approx(scores[::-1], abs=1e-5)


def test_an_encoder_hears_whether_a_response_ended() -> None:
    source = _encoder()
    ended, cut = source.score(PROMPTS[:1] * 2, [_sampled("two three"), _sampled("two three", ended=False)])
    assert abs(ended - cut) > 1e-3
    for is_ended in (True, False):
        (response,) = source.group(PROMPTS[0], _sampled("two three", ended=is_ended)).responses
        assert (response[-1] == source.text_format.eos_id) == is_ended
    assert source.score([""], [Completion("", ended=False)]) == source.score([""], [Completion("")])


@pytest.mark.parametrize("make", [lambda: _encoder(40), lambda: ModelReward(_model(40), FORMAT)])
def test_a_text_beyond_the_positions_is_read_without_the_beginning_of_its_prompt_and_counted(
    make: Callable[[], ModelReward[Any]],
) -> None:
    source = make()
    answer = Completion("one two")
    assert source.truncation is None
    kept = "four " * 3
    found = source.score(["three " * n + kept for n in (0, 100, 200)], [answer] * 3)
    assert found[1] == pytest.approx(found[2], abs=1e-5), "what differs is cut"
    assert abs(found[0] - found[1]) > 1e-5
    ids = source.text_format.completion_ids("four " * 100)
    cut = source.group("three", Completion("four " * 100))
    assert cut.longest_leaf == 40
    assert cut.responses[0] == ids[: len(cut.responses[0])], "its end is cut only where the prompt is gone"
    assert len(cut.prompt) <= 2
    group = source.group("three " * 100 + kept, answer)
    assert group.longest_leaf == 40
    assert group.responses[0] == tuple(source.text_format.completion_ids("one two"))
    assert (source.num_scored, source.num_truncated) == (5, 4)
    assert source.truncation == (
        "4 of 5 texts were longer than the reward model's 40 positions and were cut: the beginning of the prompt "
        "first, then the end of the response"
    )


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
