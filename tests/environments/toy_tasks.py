"""Words as tokens: a vocabulary of eight, prompts of one to three words, and a rule that scores answers."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefloop.data.chat_format import ChatFormat
from prefloop.records import Completion, Prompt

WORDS = ("<end>", "<unknown>", "a", "b", "c", "d", "e", "f")
END = 0
PROMPTS = ("a", "b c", "d e f")


def word_format() -> ChatFormat:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unknown>")
    return ChatFormat(tokenizer, prompt_format="raw")


class CountedScores:
    """Ten times the number of tokens, and one more for an answer that ended; keeps the size of every call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        assert len(prompts) == len(completions)
        self.calls.append(len(prompts))
        return [10.0 * len(completion.token_ids or ()) + completion.ended for completion in completions]


def settings(**changes: Any) -> dict[str, Any]:
    """What makes a toy environment."""
    made: dict[str, Any] = {
        "prompts": PROMPTS,
        "chat_format": word_format(),
        "vocabulary_size": len(WORDS),
        "max_new_tokens": 4,
        "reward_source": CountedScores(),
    }
    return made | changes
