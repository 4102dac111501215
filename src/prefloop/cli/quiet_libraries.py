"""Libraries that print on their own are told not to: what a person reads comes from us. No library calls home either."""

import os
import warnings


def hush() -> None:
    """Call before transformers is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|huggingface_hub|torch")
    from transformers.utils import logging

    logging.disable_progress_bar()
