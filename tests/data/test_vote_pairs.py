"""Pairs by votes, and the bias for early replies: planted, measured, removed."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest

from prefloop.data.posts import Post, Reply
from prefloop.data.vote_pairs import GAP_EDGES_HOURS, PairRules, VotePair, early_share, vote_pairs

HOUR = 3600.0


def post(post_id: str, replies: Sequence[tuple[int, float]], site: str = "bread") -> Post:
    """A post whose replies have these votes and hours."""
    made = [Reply(str(number), f"text {number}", votes, hours * HOUR) for number, (votes, hours) in enumerate(replies)]
    return Post(site, post_id, "title", "", 1, 0.0, None, tuple(made))


def biased_posts(num: int, *, bias: float, seed: int = 0) -> list[Post]:
    """Replies whose votes come from their worth, plus `bias` for each hour that they stand longer than the last.

    Half of them are worthy. Early ones say "first", as people do who are.
    """
    rng = random.Random(seed)
    posts = []
    for number in range(num):
        hours = sorted(rng.choice((0.5, 2.0, 6.0, 18.0, 40.0, 100.0)) * rng.random() for _ in range(3))
        replies = []
        for place, moment in enumerate(hours):
            worthy = rng.random() < 0.5
            votes = 10 * worthy + bias * (hours[-1] - moment) + rng.gauss(0, 4)
            text = f"{'worthy' if worthy else 'idle'} {'first' if place == 0 else 'later'} {number} {place}"
            replies.append(Reply(f"{place}", text, round(votes), moment * HOUR))
        posts.append(Post("bread", str(number), "title", "", 1, 0.0, None, tuple(replies)))
    return posts


def winning_share(pairs: Sequence[VotePair], has: Callable[[Reply], bool]) -> float:
    """Of the pairs in which one reply alone has something, the share in which that one won."""
    won = [has(pair.better) for pair in pairs if has(pair.better) != has(pair.worse)]
    return sum(won) / len(won)


def says_first(reply: Reply) -> bool:
    return "first" in reply.text


def is_worthy(reply: Reply) -> bool:
    return "worthy" in reply.text


def test_a_planted_bias_is_measured_and_matched_away() -> None:
    posts = biased_posts(1500, bias=1.0)
    kept = vote_pairs(posts, PairRules(early_answer="keep"), seed=0)
    matched = vote_pairs(posts, PairRules(early_answer="matched"), seed=0)
    # By worth alone no order would win: the posts without the bias are the yardstick.
    fair = vote_pairs(biased_posts(1500, bias=0.0), PairRules(early_answer="keep"), seed=0)
    assert fair.early_after.ci95 is not None
    assert fair.early_after.ci95[0] < 0.5 < fair.early_after.ci95[1]
    assert kept.early_before == kept.early_after == matched.early_before
    assert kept.early_after.ci95 is not None
    assert kept.early_after.ci95[0] > 0.7
    assert matched.early_after.share == 0.5
    assert matched.early_after.ci95 is not None
    assert matched.early_after.ci95[0] < 0.5 < matched.early_after.ci95[1]
    # What a reward model would learn from: a word that goes with being early wins no more, worth still does.
    assert winning_share(kept.pairs, says_first) > 0.75
    assert winning_share(matched.pairs, says_first) == pytest.approx(0.5, abs=0.03)
    assert winning_share(matched.pairs, is_worthy) > 0.7


def test_matching_balances_every_bin_and_not_only_the_whole() -> None:
    """Early replies win in every pair far apart, late ones in every pair close by: matched on the whole, none is."""
    far = [post(f"far{number}", [(5, 0.0), (1, 50.0)]) for number in range(20)]
    near = [post(f"near{number}", [(1, 0.0), (5, 0.5)]) for number in range(20)]
    whole = vote_pairs([*far, *near], PairRules(early_answer="matched"), seed=0)
    assert whole.early_before.share == 0.5
    assert whole.pairs == []
    assert whole.dropped == {"no pair of the other order to match": 40}
    assert whole.early_after == early_share([], seed=0)


def test_matching_stays_within_a_site() -> None:
    here = [post(f"{number}", [(5, 0.0), (1, 2.0)]) for number in range(9)]
    there = [post(f"{number}", [(1, 0.0), (5, 2.0)], site="rye") for number in range(9)]
    assert vote_pairs([*here, *there], PairRules(early_answer="matched"), seed=0).pairs == []
    mixed = [post("late", [(1, 0.0), (5, 2.0)])]
    found = vote_pairs([*here, *mixed], PairRules(early_answer="matched"), seed=0).pairs
    assert [pair.early_won for pair in found].count(1.0) == [pair.early_won for pair in found].count(0.0) == 1


def test_replies_that_came_at_once_have_no_order_and_stay() -> None:
    found = vote_pairs([post("a", [(5, 1.0), (1, 1.0)])], PairRules(early_answer="matched"), seed=0)
    assert [pair.early_won for pair in found.pairs] == [0.5]
    assert vote_pairs([post("a", [(5, 1.0), (1, 1.0)])], PairRules(early_answer="later_wins"), seed=0).pairs == []


def test_a_window_keeps_replies_of_about_the_same_time() -> None:
    posts = [post("a", [(5, 0.0), (3, 3.0), (1, 6.5)])]
    found = vote_pairs(posts, PairRules(early_answer="window", window_hours=3.0), seed=0)
    assert [pair.pair_id for pair in found.pairs] == ["bread/a/0-1"]
    assert found.dropped == {"further apart than the window": 2}


def test_later_winners_have_their_votes_in_spite_of_their_time() -> None:
    posts = [post("a", [(5, 0.0), (3, 1.0), (9, 2.0)])]
    found = vote_pairs(posts, PairRules(early_answer="later_wins"), seed=0)
    assert [(pair.better.score, pair.worse.score) for pair in found.pairs] == [(9, 5), (9, 3)]
    assert found.early_before.share == pytest.approx(1 / 3)
    assert found.early_after.share == 0.0


def test_close_votes_and_equal_texts_make_no_pair() -> None:
    same = Reply("x", "text  0", 9, 0.0)
    one = post("a", [(5, 0.0), (4, 1.0), (2, 2.0)])
    posts = [Post(**{**vars(one), "replies": (*one.replies, same)})]
    found = vote_pairs(posts, PairRules(early_answer="keep", least_vote_difference=3), seed=0)
    assert {pair.pair_id for pair in found.pairs} == {"bread/a/0-2", "bread/a/x-1", "bread/a/x-2"}
    assert found.dropped == {"votes too close": 2, "equal texts": 1}
    assert found.num_possible == 6


@pytest.mark.parametrize("early_answer", ["keep", "window", "later_wins", "matched"])
def test_every_pair_is_counted_and_order_changes_nothing(early_answer: Any) -> None:
    posts = biased_posts(60, bias=0.3)
    rules = PairRules(early_answer=early_answer, max_pairs_per_post=2)
    found = vote_pairs(posts, rules, seed=4)
    assert found.num_possible == len(found.pairs) + sum(found.dropped.values())
    shuffled = [Post(**{**vars(one), "replies": one.replies[::-1]}) for one in posts[::-1]]
    again = vote_pairs(shuffled, rules, seed=4)
    assert {pair.pair_id for pair in again.pairs} == {pair.pair_id for pair in found.pairs}
    assert max(sum(pair.post == one for pair in found.pairs) for one in posts) <= 2


def test_another_seed_draws_other_pairs() -> None:
    posts = biased_posts(200, bias=1.0)
    drawn = [{pair.pair_id for pair in vote_pairs(posts, PairRules(), seed=seed).pairs} for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_the_share_is_counted_by_hand() -> None:
    one = post("a", [(5, 0.0), (1, 1.0)])
    other = post("b", [(1, 0.0), (5, 1.0)])
    pairs = [VotePair(one, *one.replies), VotePair(other, *other.replies[::-1]), VotePair(one, *one.replies)]
    found = early_share(pairs, seed=0)
    assert found.share == pytest.approx(2 / 3)
    assert found.ci95 == (0.0, 1.0)
    assert early_share(pairs[:1], seed=0).ci95 is None


def test_the_share_by_time_apart_counts_each_pair_once_in_its_bin() -> None:
    assert all(low < high for low, high in combinations(GAP_EDGES_HOURS, 2))
    posts = [post("a", [(5, 0.0), (1, 0.5)]), post("b", [(1, 0.0), (5, 0.9)]), post("c", [(5, 0.0), (1, 1.0)])]
    posts += [post("d", [(5, 0.0), (1, 5000.0)])]
    found = vote_pairs(posts, PairRules(early_answer="keep"), seed=0)
    assert [(one.share, one.num_pairs) for one in found.early_by_gap] == [
        (0.5, 2),
        (1.0, 1),
        *[(None, 0)] * 5,
        (1.0, 1),
    ]
    by_gap = found.to_json()["earlier_won_by_gap"]
    assert [(one["from_hours"], one["to_hours"]) for one in (by_gap[0], by_gap[1], by_gap[-1])] == [
        (0.0, 1.0),
        (1.0, 3.0),
        (720.0, None),
    ]
