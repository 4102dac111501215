"""Tokens to text while they are drawn: whole characters only, and nothing of a stop string or of what follows it."""

from collections.abc import Sequence

from prefloop.data.chat_format import ChatFormat
from prefloop.errors import ModelError

HALF_A_CHARACTER = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


class StreamedText:
    """One completion on its way. The pieces that `push` and `finish` return make up `text`.

    With `stop` strings, `text` ends before the one that is complete first, the longest of those that end together, and
    `stopped` is true from then on; an end of the text that may yet become a stop string is held back until it is clear.
    """

    def __init__(self, chat_format: ChatFormat, *, stop: Sequence[str] = ()) -> None:
        self.chat_format = chat_format
        self.stop = tuple(stop)
        self.token_ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._num_searched = 0

    def push(self, token: int) -> str:
        """What can be shown now that the token is there; often nothing. Raises ModelError as `finish`."""
        self.token_ids.append(token)
        # A character may be spread over several tokens: it is shown when it is whole.
        return self._advance(self.chat_format.decode(self.token_ids).rstrip(HALF_A_CHARACTER), is_all=False)

    def finish(self) -> str:
        """What was held back, when no token follows.

        Raises ModelError when the tokenizer writes earlier text anew as more tokens come: what was shown cannot be
        taken back.
        """
        return self._advance(self.chat_format.decode(self.token_ids), is_all=True)

    def _advance(self, whole: str, *, is_all: bool) -> str:
        if self.stopped:
            return ""
        if not whole.startswith(self.text):
            raise ModelError(
                "The tokenizer rewrites earlier text as an answer goes on, so its answers cannot be shown as they come."
            )
        end = self._first_stop(whole)
        if end is not None:
            self.stopped = True
        else:
            end = len(whole) if is_all else len(whole) - self._num_held_back(whole)
        piece = whole[len(self.text) : end]
        self.text += piece
        return piece

    def _first_stop(self, whole: str) -> int | None:
        """Where the stop string begins that is complete first. Text that was searched before is not searched again."""
        longest = max(map(len, self.stop), default=0)
        start = max(0, self._num_searched - longest + 1)
        found = [(place + len(word), place) for word in self.stop if (place := whole.find(word, start)) >= 0]
        self._num_searched = len(whole)
        return min(found)[1] if found else None

    def _num_held_back(self, whole: str) -> int:
        """The length of the longest end of the text with which a stop string begins."""
        longest = max(map(len, self.stop), default=0)
        for length in range(min(longest - 1, len(whole)), 0, -1):
            if any(word.startswith(whole[-length:]) for word in self.stop):
                return length
        return 0
