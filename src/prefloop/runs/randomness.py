"""The random generators of the process, set for each step, so that not one of them has to be saved."""

import random

from prefloop.randomness import derived_seed


def seed_global_generators(seed: int, stream: str, step: int) -> None:
    """Sets the generators of the process (Python, NumPy, PyTorch on every device) for one stream at one step.

    Dropout has no generator of its own, and libraries draw from these as they like.
    """
    import numpy

    from prefloop.models.update import seed_torch

    derived = derived_seed(seed, stream, step)
    random.seed(derived)
    numpy.random.seed(derived % 2**32)
    seed_torch(derived)
