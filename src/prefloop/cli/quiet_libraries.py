"""Libraries that print on their own are told not to: what a person reads comes from us. No library calls home."""

import os
import warnings


def hush() -> None:
    """Call before torch and transformers are imported."""
    # A thread that spins for long while it waits takes the core from the one it waits for, as soon as anything else is
    # running; one that sleeps at once wakes up too late. A short spin costs neither.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|huggingface_hub|torch")
    # In a notebook, a library of progress bars asks for widgets that nobody needs here.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from transformers.utils import logging

    logging.disable_progress_bar()
