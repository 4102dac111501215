"""A small random model behind the OpenAI API, and a client of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from prefloop.data.chat_format import ChatFormat, PromptFormat
from prefloop.models.backbone import Backbone
from prefloop.models.from_scratch import new_model, train_tokenizer
from prefloop.models.policy import Policy
from prefloop.web.completion_engine import CompletionEngine
from prefloop.web.completion_server import running_completion_server

CONTEXT = 96


def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["one two three", "four five six"], vocabulary_size=290)


def small_engine(
    *, prompt_format: PromptFormat = "chat", end_bias: float = 0.0, max_new_tokens: int = 64, max_waiting: int = 4
) -> CompletionEngine:
    """A model that says random bytes; with `end_bias` large it ends soon."""
    words = tokenizer()
    model = new_model("gpt2", words, hidden_size=16, num_layers=1, num_heads=2, max_length=CONTEXT, seed=1)
    assert isinstance(words.eos_token_id, int)
    if end_bias:
        head = torch.nn.Linear(16, len(words), bias=True)
        with torch.no_grad():
            head.weight.copy_(model.get_output_embeddings().weight)  # type: ignore[union-attr]
            head.bias.zero_()
            head.bias[words.eos_token_id] = end_bias
        model.lm_head = head
    policy = Policy(Backbone(model.eval()), words)
    chat_format = ChatFormat(words, prompt_format=prompt_format)
    return CompletionEngine(policy, chat_format, name="tiny", max_new_tokens=max_new_tokens, max_waiting=max_waiting)


@contextmanager
def served(engine: CompletionEngine, *, api_key: str | None = None) -> Iterator[str]:
    """The engine behind an address, until the block ends."""
    try:
        with running_completion_server(engine, api_key=api_key) as url:
            yield url
    finally:
        engine.close()


@contextmanager
def client_of(url: str, *, api_key: str = "any") -> Iterator[OpenAI]:
    """The real client, which does not try again by itself."""
    with OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=30) as client:
        yield client
