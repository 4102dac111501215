"""The stage that makes prompts, demonstrations and weak preferences out of raw posts and replies."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from prefloop.collection.pairs import comparison_to_row
from prefloop.data.posts import Account, Post, Reply, read_posts
from prefloop.data.sources import record_to_row
from prefloop.data.splits import leakage, split_by_prompt
from prefloop.data.vote_pairs import EarlyShare, PairRules, VotePair, VotePairs, vote_pairs
from prefloop.errors import DataError
from prefloop.randomness import python_random
from prefloop.records import Comparison, Completion, Demonstration, LabelledText, PreferencePair, Prompt
from prefloop.runs.plan import POST_FILES
from prefloop.runs.stage_context import StageContext
from prefloop.runs.stage_settings import PreparePosts

SUMMARY_REQUEST = "TL;DR:"
"""What a prompt for a summary ends with."""


@dataclass(frozen=True)
class _Part:
    """The posts of one share and what is made of them."""

    name: str
    posts: list[Post]
    pairs: VotePairs


def run_prepare_posts(settings: PreparePosts, context: StageContext) -> None:
    """Writes for each share what `POST_FILES` lists, and audit.json with an account of every row and pair."""
    sources = settings.sources or (context.default_data or "",)
    found = read_posts([context.resolve(source) for source in sources], settings.filters)
    prompts = [_prompt(post, settings) for post in found.posts]
    parts: list[_Part] = []
    split = split_by_prompt(list(dict.fromkeys(prompts)), shares=settings.shares, seed=context.seed)
    for name, kept in split.items():
        belonging = set(kept)
        posts = [post for post, prompt in zip(found.posts, prompts, strict=True) if prompt in belonging]
        if not posts:
            raise DataError(
                f"the part {name} is empty: {len(found.posts):,} of {found.post_account.num_read:,} posts passed the "
                "filters; loosen them, give more posts, or a larger share"
            )
        # Made within each part: that replies are matched must hold in the part by itself.
        parts.append(_Part(name, posts, vote_pairs(posts, settings.pair_rules, seed=context.seed)))
    written = {part.name: _write(part, settings, context) for part in parts}
    lines = [*_account_lines("posts", found.post_account), *_account_lines("replies", found.reply_account)]
    for part in parts:
        lines += _part_lines(part, written[part.name], settings.pair_rules)
    lines += [
        f"prompts that {first} and {second} share: {leakage(list(split[first]), list(split[second]))}"
        for first, second in combinations(split, 2)
    ]
    audit = {
        "lines": lines,
        "files": [dict(file) for file in found.files],
        "posts": found.post_account.to_json(),
        "replies": found.reply_account.to_json(),
        "parts": {part.name: {"rows": written[part.name], "pairs": part.pairs.to_json()} for part in parts},
    }
    context.write_json("audit.json", audit)
    for line in lines:
        context.progress.note(f"  {line.strip()}")
    for part in parts:
        if not written[part.name]["pairs"]:
            context.progress.warn(
                f"{context.name}: the part {part.name} has no pair left, so no stage can learn from it or be measured "
                "on it. Loosen the filters or pair_rules (early_answer=keep matches nothing away), or give more posts"
            )


def _prompt(post: Post, settings: PreparePosts) -> str:
    return post.title if settings.prompt == "title" or not post.text else f"{post.title}\n\n{post.text}"


# What is written


def _write(part: _Part, settings: PreparePosts, context: StageContext) -> dict[str, int]:
    """The rows of each file of a share, which are returned as counts."""
    records: dict[str, list[Any]] = {
        "prompts": list(dict.fromkeys(_prompt(post, settings) for post in part.posts)),
        "demonstrations": list(dict.fromkeys(_demonstrations(part.posts, settings))),
        "summaries": list(dict.fromkeys(_summaries(part.posts))),
        "pairs": [_preference(pair, settings) for pair in part.pairs.pairs],
        "labelled": list(dict.fromkeys(_labelled(part.pairs.pairs, settings))),
        "comparisons": [_comparison(pair, settings, seed=context.seed) for pair in part.pairs.pairs],
    }
    for what in POST_FILES:
        to_row = comparison_to_row if what == "comparisons" else record_to_row
        context.write_rows(f"{part.name}_{what}.jsonl", map(to_row, records[what]))
    return {what: len(records[what]) for what in POST_FILES}


def _demonstrations(posts: Sequence[Post], settings: PreparePosts) -> Iterator[Demonstration]:
    """The answers of each post with most votes; the accepted one goes before others with as many."""
    for post in posts:
        good = [reply for reply in post.replies if reply.score >= settings.least_demonstration_score]
        best = sorted(good, key=lambda reply: (-reply.score, not reply.accepted, reply.created_seconds))
        for reply in best[: settings.demonstrations_per_post]:
            yield Demonstration(_prompt(post, settings), reply.text)


def _summaries(posts: Sequence[Post]) -> Iterator[Demonstration]:
    """Posts with their authors' own TL;DR."""
    for post in posts:
        if post.summary:
            yield Demonstration(f"{post.title}\n\n{post.text}\n\n{SUMMARY_REQUEST}", post.summary)


def _preference(pair: VotePair, settings: PreparePosts) -> PreferencePair:
    return PreferencePair(_prompt(pair.post, settings), pair.better.text, pair.worse.text)


def _labelled(pairs: Sequence[VotePair], settings: PreparePosts) -> Iterator[LabelledText]:
    """Every reply that won more of its pairs than it lost as 1, every one that lost more as 0."""
    lead: Counter[tuple[str, str]] = Counter()
    texts: dict[tuple[str, str], tuple[Prompt, str]] = {}
    for pair in pairs:
        for reply, won in ((pair.better, 1), (pair.worse, -1)):
            key = (pair.post.key, reply.reply_id)
            lead[key] += won
            texts[key] = (_prompt(pair.post, settings), reply.text)
    for key, (prompt, text) in texts.items():
        if lead[key]:
            yield LabelledText(text, int(lead[key] > 0), prompt)


def _comparison(pair: VotePair, settings: PreparePosts, *, seed: int) -> Comparison:
    """Which answer is called left is drawn. `details` keep what people elsewhere said about both."""
    details: dict[str, Any] = {
        "votes": {"left": pair.better.score, "right": pair.worse.score},
        "accepted": {"left": pair.better.accepted, "right": pair.worse.accepted},
        "created_seconds": {"left": pair.better.created_seconds, "right": pair.worse.created_seconds},
    }
    swaps = python_random(seed, f"sides of {pair.pair_id}").random() < 0.5
    if swaps:
        details = {name: {"left": both["right"], "right": both["left"]} for name, both in details.items()}
    comparison = Comparison(
        pair.pair_id, _prompt(pair.post, settings), _completion(pair.better), _completion(pair.worse), details
    )
    return comparison.swap() if swaps else comparison


def _completion(reply: Reply) -> Completion:
    return Completion(reply.text, source="post")


# What is told


def _account_lines(what: str, account: Account) -> list[str]:
    lines = [f"{account.num_read:,} {what} read, {account.num_used:,} used"]
    return lines + [f"  dropped {count:,}: {reason}" for reason, count in account.dropped.most_common()]


def _part_lines(part: _Part, written: dict[str, int], rules: PairRules) -> list[str]:
    pairs = part.pairs
    lines = [f"{part.name}: " + ", ".join(f"{written[what]:,} {what}" for what in POST_FILES)]
    lines.append(f"{part.name}: {pairs.num_possible:,} pairs possible, {len(pairs.pairs):,} used")
    lines += [f"  dropped {count:,}: {reason}" for reason, count in pairs.dropped.items()]
    if pairs.early_before.share is not None:
        before, after = _share(pairs.early_before), _share(pairs.early_after)
        lines.append(f"{part.name}: the earlier reply won {before}; with early_answer {rules.early_answer} {after}")
    return lines


def _share(found: EarlyShare) -> str:
    if found.share is None:
        return "no pair is left"
    interval = f" [{found.ci95[0]:.1%}, {found.ci95[1]:.1%}]" if found.ci95 else ""
    return f"{found.share:.1%}{interval} of {found.num_pairs:,}"
