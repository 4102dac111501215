"""Plain facts that travel through the loop: prompts, completions, comparisons, labels. No torch here.

A prompt is either a string (used exactly as it stands) or a list of messages (rendered by the chat format).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Choice = Literal["left", "right", "tie", "both_bad", "skip"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """What a model (or a person) answered to a prompt.

    `token_ids` are the tokens as they were sampled, the end-of-sequence token included when `ended` is true;
    they are None for text that came from elsewhere. `logprobs` (nats) belong to the distribution they were
    sampled from. `text` never holds special tokens. A completion with `ended` false was cut at the length limit.
    """

    text: str
    ended: bool = True
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    source: str = ""


@dataclass(frozen=True)
class TextExample:
    """A text to imitate as a whole."""

    text: str


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer to imitate; with messages, the prompt holds all turns before the last answer."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt and which one people preferred.

    `agreement` is the share of annotators who chose `chosen`, in [0.5, 1]; 1.0 for a single label.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    agreement: float = 1.0
    num_annotators: int = 1
    chosen_ended: bool = True
    rejected_ended: bool = True


@dataclass(frozen=True)
class LabelledText:
    """A single text with a binary label: 1 is good (positive, accepted), 0 is not."""

    text: str
    label: int
    prompt: Prompt = ""


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, waiting for a choice. `left` and `right` are as displayed."""

    pair_id: str
    prompt: Prompt
    left: Completion
    right: Completion
    details: dict[str, Any] = field(default_factory=dict)

    def swap(self) -> "Comparison":
        """The same comparison with the sides exchanged."""
        return replace(self, left=self.right, right=self.left)


@dataclass(frozen=True)
class Label:
    """One annotator's choice on one comparison, by side as displayed."""

    pair_id: str
    annotator: str
    choice: Choice


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one readable string: itself, or its messages' contents one below the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.content for message in prompt)
