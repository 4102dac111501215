"""Votes as weak preferences: pairs of replies to one post, and what is done about votes that favour the early.

A reply that stands longer is seen by more people and collects more votes, whatever it is worth, so "more votes" says in
part "was earlier". What is left of that is measured as the share of pairs in which the reply with more votes is the
earlier one: one half where time says nothing.

`early_answer` says what is done:

- "keep": nothing. The bias is measured, and stays.
- "window": replies that are at most `window_hours` apart. Both were seen by nearly the same people; most pairs go.
- "later_wins": pairs in which the later reply has more votes although it had less time. No early reply wins by its
  time; but no early reply wins at all, so whatever goes with being early now counts against an answer. (So does the
  Stanford Human Preferences data set: Ethayarajh et al. 2022, "Understanding Dataset Difficulty with V-Usable
  Information".)
- "matched": of the pairs of one site whose replies are equally far apart (in the bins of `GAP_EDGES_HOURS`), as many
  with an early winner as with a late one, drawn at random. Being early then tells nothing, in no bin.
"""

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from pydantic import Field

from prefloop.contracts import Settings
from prefloop.data.posts import Post, Reply
from prefloop.formulas.intervals import cluster_bootstrap

EarlyAnswer = Literal["keep", "window", "later_wins", "matched"]

GAP_EDGES_HOURS = (1.0, 3.0, 12.0, 24.0, 72.0, 168.0, 720.0)
"""Where the bins of the time between two replies meet: an hour, ..., a day, ..., a week, a month."""

EQUAL_TEXTS = "equal texts"
CLOSE_VOTES = "votes too close"
TOO_MANY = "more pairs than max_pairs_per_post"
FAR_APART = "further apart than the window"
EARLY_WINS = "the earlier reply won"
NO_MATCH = "no pair of the other order to match"


class PairRules(Settings):
    """How replies to one post make pairs."""

    early_answer: EarlyAnswer = "matched"
    """What is done about votes that favour early replies: keep, window, later_wins or matched."""
    window_hours: float = Field(default=3.0, gt=0)
    """With "window", how far apart two replies of a pair may be."""
    least_vote_difference: int = Field(default=1, ge=1)
    """Votes by which one reply must lead."""
    max_pairs_per_post: int = Field(default=10, ge=1)
    """Pairs of one post, drawn at random where it has more."""


@dataclass(frozen=True)
class VotePair:
    """Two replies to one post; `better` has more votes."""

    post: Post
    better: Reply
    worse: Reply

    @property
    def pair_id(self) -> str:
        return f"{self.post.key}/{self.better.reply_id}-{self.worse.reply_id}"

    @property
    def hours_apart(self) -> float:
        return abs(self.better.created_seconds - self.worse.created_seconds) / 3600

    @property
    def early_won(self) -> float:
        """1 where the earlier reply has more votes, 0 where the later one has, one half where both came at once."""
        lead = self.worse.created_seconds - self.better.created_seconds
        return 0.5 if lead == 0 else float(lead > 0)


@dataclass(frozen=True)
class EarlyShare:
    """In how many pairs the earlier reply won: the share, its 95 % interval (whole posts drawn), the number of pairs.

    Share and interval are None without pairs, the interval with pairs of fewer than two posts.
    """

    share: float | None
    ci95: tuple[float, float] | None
    num_pairs: int


@dataclass(frozen=True)
class VotePairs:
    """The pairs that are used, in the order of the posts. All `num_possible` pairs are used or dropped by a reason.

    `early_before` is of all pairs with a clear vote, `early_after` of those that are used. `early_by_gap` is
    `early_before` by the time between the two replies, in the bins of `GAP_EDGES_HOURS`.
    """

    pairs: list[VotePair]
    num_possible: int
    dropped: dict[str, int]
    early_before: EarlyShare
    early_after: EarlyShare
    early_by_gap: list[EarlyShare]

    def to_json(self) -> dict[str, Any]:
        return {
            "possible": self.num_possible,
            "used": len(self.pairs),
            "dropped": self.dropped,
            "earlier_won_before": vars(self.early_before),
            "earlier_won_after": vars(self.early_after),
            "earlier_won_by_gap": [
                {"from_hours": low, "to_hours": high, **vars(one)}
                for (low, high), one in zip(pairwise((0.0, *GAP_EDGES_HOURS, None)), self.early_by_gap, strict=True)
            ],
        }


def vote_pairs(posts: Sequence[Post], rules: PairRules, *, seed: int) -> VotePairs:
    """The pairs of the posts' replies by the rules.

    What is drawn depends on the seed and the pairs alone, never on the order of posts or replies.
    """
    dropped: Counter[str] = Counter()
    clear: list[VotePair] = []
    num_possible = 0
    for post in posts:
        for one, other in combinations(post.replies, 2):
            num_possible += 1
            better, worse = (one, other) if one.score > other.score else (other, one)
            if one.text.split() == other.text.split():
                dropped[EQUAL_TEXTS] += 1
            elif better.score - worse.score < rules.least_vote_difference:
                dropped[CLOSE_VOTES] += 1
            else:
                clear.append(VotePair(post, better, worse))
    before = early_share(clear, seed=seed)
    by_gap = [early_share(of_gap, seed=seed) for of_gap in _by_gap(clear)]
    is_fair, reason = SELECTIONS[rules.early_answer]
    fair = [pair for pair in clear if is_fair(pair, rules)]
    dropped[reason] += len(clear) - len(fair)
    used = _at_most_per_post(fair, rules.max_pairs_per_post, seed=seed)
    dropped[TOO_MANY] += len(fair) - len(used)
    if rules.early_answer == "matched":
        # Last: pairs that are dropped later would unbalance it.
        used, num_before = _matched(used, seed=seed), len(used)
        dropped[NO_MATCH] += num_before - len(used)
    assert num_possible == len(used) + dropped.total(), "a pair vanished"
    counted = {reason: num for reason, num in dropped.items() if num}
    return VotePairs(used, num_possible, counted, before, early_share(used, seed=seed), by_gap)


def early_share(pairs: Sequence[VotePair], *, seed: int) -> EarlyShare:
    """See `EarlyShare`."""
    if not pairs:
        return EarlyShare(None, None, 0)
    won = [pair.early_won for pair in pairs]
    posts = [pair.post.key for pair in pairs]
    interval = cluster_bootstrap(won, posts, seed=seed) if len(set(posts)) > 1 else None
    return EarlyShare(sum(won) / len(won), interval, len(won))


def _by_gap(pairs: Sequence[VotePair]) -> list[list[VotePair]]:
    bins: list[list[VotePair]] = [[] for _ in range(len(GAP_EDGES_HOURS) + 1)]
    for pair in pairs:
        bins[_gap(pair)].append(pair)
    return bins


def _gap(pair: VotePair) -> int:
    """The number of the pair's bin."""
    return bisect_right(GAP_EDGES_HOURS, pair.hours_apart)


# --- what is done about early replies ---------------------------------------------------------------------------------


SELECTIONS: dict[EarlyAnswer, tuple[Callable[[VotePair, PairRules], bool], str]] = {
    "keep": (lambda _pair, _rules: True, ""),
    "window": (lambda pair, rules: pair.hours_apart <= rules.window_hours, FAR_APART),
    "later_wins": (lambda pair, _rules: pair.early_won == 0, EARLY_WINS),
    "matched": (lambda _pair, _rules: True, ""),
}
"""By `early_answer`: which pairs may be used, and why the others may not."""


def _matched(pairs: Sequence[VotePair], *, seed: int) -> list[VotePair]:
    """In each site and bin of time as many early winners as late ones; replies that came at once have no order."""
    by_bin: defaultdict[tuple[str, int], dict[float, list[VotePair]]] = defaultdict(lambda: {0.0: [], 0.5: [], 1.0: []})
    for pair in pairs:
        by_bin[pair.post.site, _gap(pair)][pair.early_won].append(pair)
    used: set[str] = set()
    for orders in by_bin.values():
        num = min(len(orders[0.0]), len(orders[1.0]))
        kept = [*orders[0.5], *_drawn(orders[0.0], num, seed=seed), *_drawn(orders[1.0], num, seed=seed)]
        used.update(pair.pair_id for pair in kept)
    return [pair for pair in pairs if pair.pair_id in used]


def _at_most_per_post(pairs: Sequence[VotePair], num: int, *, seed: int) -> list[VotePair]:
    of_post: defaultdict[str, list[VotePair]] = defaultdict(list)
    for pair in pairs:
        of_post[pair.post.key].append(pair)
    used = {pair.pair_id for found in of_post.values() for pair in _drawn(found, num, seed=seed)}
    return [pair for pair in pairs if pair.pair_id in used]


def _drawn(pairs: Sequence[VotePair], num: int, *, seed: int) -> list[VotePair]:
    """So many pairs at random: those whose hash of seed and name is smallest."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(f"{seed}\n{pair.pair_id}".encode()).digest())[:num]
