"""Every random draw comes from (run seed, named stream, step), so a resumed run draws what it would have drawn.

Streams are separate (data order, sampling, dropout, annotators): switching one on never shifts another.
"""

import hashlib
import random
from functools import lru_cache


def derived_seed(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed that depends on all three; the same on every machine and Python."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def python_random(seed: int, stream: str, step: int = 0) -> random.Random:
    """A generator of its own for one stream and step."""
    return random.Random(derived_seed(seed, stream, step))


def permutation(seed: int, stream: str, epoch: int, *, length: int) -> list[int]:
    """The numbers 0 to length - 1 in the order of this epoch."""
    order = list(range(length))
    python_random(seed, stream, epoch).shuffle(order)
    return order


def batch_indices(seed: int, stream: str, step: int, *, length: int, batch_size: int) -> list[int]:
    """The rows of batch `step`, walking through one permutation after another; a batch may span two epochs."""
    first = step * batch_size
    places = (divmod(place, length) for place in range(first, first + batch_size))
    return [_epoch_order(seed, stream, epoch, length)[offset] for epoch, offset in places]


@lru_cache(maxsize=4)
def _epoch_order(seed: int, stream: str, epoch: int, length: int) -> tuple[int, ...]:
    """`permutation`, which is long where the data are many, drawn once for all batches of an epoch."""
    return tuple(permutation(seed, stream, epoch, length=length))
