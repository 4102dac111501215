"""Small random models of many architectures, random token groups, and what the stock model says of one sequence."""

import copy
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prefloop.batches import TokenGroup
from prefloop.models.from_scratch import train_tokenizer
from prefloop.models.packed_attention import register

FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt_neox")
"""The decoders that are promised to work as policy and as reward model."""

ARCHITECTURES = (*FAMILIES, "mistral", "phi3", "opt")
VOCABULARY = 61


def tiny_config(architecture: str, **changes: object) -> dict[str, object]:
    """Two layers; grouped query heads where the architecture has them; weights large enough for a sharp softmax."""
    config: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if architecture in ("qwen3", "gemma", "gemma3_text"):
        config["head_dim"] = 8
    if architecture == "opt":
        config |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    return config | changes


def tiny_model(architecture: str, **changes: object) -> PreTrainedModel:
    """A random causal model in eval mode, in float32; always the same weights."""
    config = AutoConfig.for_model(architecture, **tiny_config(architecture, **changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        # Zero biases and unit norms would hide a weight that got lost.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def stock_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights under transformers' own eager attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["one two three", "four five"], vocabulary_size=270)


def tokenizer_without_padding() -> PreTrainedTokenizerFast:
    """Like GPT-2's: one special token, which begins and ends, and none to pad with."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    backend.train_from_iterator(
        ["one two"], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0], bos_token=special[0])


def random_groups(seed: int, *, count: int = 6, longest_prompt: int = 40, longest: int = 50) -> list[TokenGroup]:
    """Prompts with one to three responses of any length, over several attention buckets."""
    rng = random.Random(seed)

    def tokens(limit: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, limit)))

    return [TokenGroup(tokens(longest_prompt), tuple(tokens(longest) for _ in range(1 + n % 3))) for n in range(count)]


def leaves(groups: Sequence[TokenGroup]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, response) of every response, in the order of the packed batch."""
    return [(group.prompt, response) for group in groups for response in group.responses]


def logprobs_alone(model: PreTrainedModel, groups: Sequence[TokenGroup], *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of all response tokens, each sequence by itself through the model's own forward pass."""
    parts = []
    for prompt, response in leaves(groups):
        tokens = torch.tensor([*prompt, *response])
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        parts.append(torch.log_softmax(logits / temperature, -1).gather(-1, tokens[len(prompt) :, None])[:, 0])
    return torch.cat(parts)


def gradients(model: torch.nn.Module) -> Tensor:
    """All gradients as one vector, zeros where there is none."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    return torch.cat([grad.flatten() for grad in grads])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def restore_registration() -> None:
    """Makes the package's own attention function known again after a test that replaced it."""
    register()
