"""Shapes and types of the pure floors are checked at run time in every test, whichever module imports them first."""

import os

# Before torch is imported: threads that spin while they wait slow two test processes down to a crawl.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from jaxtyping import install_import_hook

# The numeric tower lets an int stand where a float is meant, as Python's typing rules do.
install_import_hook(
    ["prefloop.formulas", "prefloop.batches"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
torch.set_num_threads(2)
