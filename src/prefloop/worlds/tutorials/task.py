"""What a task of the tutorials world is: a goal and the steps that reach it, in order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One everyday task.

    `goal` is a verb phrase that completes "How do I ...?"; `steps` are five to seven sentences, in the only right
    order, and no sentence occurs in a second place of the world.
    """

    identifier: str
    goal: str
    steps: tuple[str, ...]
