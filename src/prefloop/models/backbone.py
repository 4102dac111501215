"""A transformer body that several roles may share: plain, or with one LoRA adapter per role.

With full fine-tuning every role (policy, reference, critic, reward model) has a backbone of its own. With LoRA they are
named adapters on one backbone, and the reference is the backbone with its adapters off.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prefloop.batches import PackedBatch
from prefloop.errors import ModelError
from prefloop.hub import no_vain_waiting
from prefloop.models.packed_attention import NAME, register
from prefloop.randomness import derived_seed

Precision = Literal["float32", "bfloat16"]


class Backbone:
    """A Hugging Face model run over packed batches. `adapter` names the LoRA adapter to use; None is plain weights."""

    def __init__(self, model: PreTrainedModel, *, precision: Precision = "float32") -> None:
        model.set_attn_implementation(register())
        self.model = model
        self.precision: Precision = precision
        self.adapters: list[str] = []
        self._active: str | None = None

    @property
    def body(self) -> torch.nn.Module:
        """The transformer without its head."""
        return self.model.base_model

    @property
    def head(self) -> torch.nn.Module:
        """The language-model head. Raises ModelError for a model without one."""
        return head_of(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def max_length(self) -> int | None:
        """The most tokens the model has positions for, where its config says so."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def hidden(self, batch: PackedBatch, *, adapter: str | None = None) -> Float[Tensor, "token width"]:
        """The last hidden states of the packed row. Raises ModelError for a sequence beyond the model's positions."""
        if self.max_length is not None and batch.layout.longest_leaf > self.max_length:
            raise ModelError(
                f"a sequence of {batch.layout.longest_leaf} tokens is longer than the {self.max_length} positions of "
                f"the model: set max_length to {self.max_length} or less"
            )
        if self.model.config._attn_implementation != NAME:
            # Another attention would take the layout as a keyword it need not read, and let every token see the row.
            raise ModelError(f"the attention of {type(self.model).__name__} was replaced after it was made a backbone")
        batch = batch.to(self.device)
        with self.using(adapter), self.autocast():
            out = self.body(
                input_ids=batch.tokens[None],
                position_ids=batch.positions[None],
                # A 4-D mask is passed on as it is, so nothing token-by-token is built for it.
                attention_mask=torch.zeros(1, 1, 1, 1, device=self.device),
                use_cache=False,
                packed=batch.layout,
            )
        return out.last_hidden_state[0]

    def autocast(self) -> Any:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    # Adapters

    def add_adapter(self, name: str, config: LoraConfig, *, seed: int = 0) -> None:
        """A fresh LoRA adapter; with its B matrices at zero it changes nothing yet. The plain weights freeze.

        Its A matrices are drawn from the seed and the name, whatever the global random state.
        """
        with warnings.catch_warnings(), torch.random.fork_rng():
            torch.manual_seed(derived_seed(seed, f"adapter {name}"))
            # Several adapters on one model is what this class is for.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            self.model.add_adapter(config, adapter_name=name)
        self.adapters.append(name)
        self._active = name
        with self.using(None):
            pass

    def copy_adapter(self, source: str, target: str, config: LoraConfig) -> None:
        """A new adapter `target` that starts from the weights of `source`."""
        self.add_adapter(target, config)
        weights = {name: value.detach().clone() for name, value in self.adapter_parameters(source).items()}
        with torch.no_grad():
            for name, parameter in self.adapter_parameters(target).items():
                parameter.copy_(weights[name.replace(f".{target}.", f".{source}.")])

    def adapter_parameters(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        """The parameters of one adapter by name."""
        return {name: p for name, p in self.model.named_parameters() if f".{adapter}." in name and "lora_" in name}

    def parameters(self, adapter: str | None = None) -> dict[str, torch.nn.Parameter]:
        """What a role trains: its adapter, or with no adapters at all the whole body."""
        if adapter is not None:
            return self.adapter_parameters(adapter)
        return dict(self.body.named_parameters())

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Runs the block with one adapter on, or with all of them off."""
        if not self.adapters:
            if adapter is not None:
                raise ModelError(f"there is no adapter called {adapter} on this model")
            yield
            return
        before = self._active
        self._switch(adapter)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, adapter: str | None) -> None:
        if adapter is None:
            self.model.disable_adapters()
        else:
            self.model.enable_adapters()
            self.model.set_adapter(adapter)
        self._active = adapter
        # The switch above also toggles requires_grad; what trains is decided by the optimizer, not by what is active.
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)

    def frozen_copy(self) -> "Backbone":
        """A copy of the plain weights that no gradient reaches: the reference under full fine-tuning."""
        twin = Backbone(copy.deepcopy(self.model), precision=self.precision)
        twin.model.requires_grad_(False)
        return twin

    def plain_state(self, adapter: str | None) -> dict[str, Tensor]:
        """The body's weights under their Hugging Face names, with the adapter merged in."""
        if not self.adapters:
            return dict(self.body.state_dict())
        merged: dict[str, Tensor] = {}
        deltas: dict[str, Tensor] = {}
        for name, module in self.body.named_modules():
            if hasattr(module, "get_delta_weight") and adapter is not None and adapter in module.lora_A:  # type: ignore[attr-defined]
                deltas[name] = module.get_delta_weight(adapter)  # type: ignore[operator]
        for name, value in self.body.state_dict().items():
            if "lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            owner = plain.rsplit(".", 1)[0]
            merged[plain] = (
                value + deltas[owner].to(value.dtype) if plain.endswith(".weight") and owner in deltas else value
            )
        return merged


def head_of(model: PreTrainedModel) -> torch.nn.Module:
    """The model's language-model head. Raises ModelError for a model without one."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no language-model head: a policy needs a causal model")
    return head


def load_body(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Puts a body's weights into a fresh model. Raises ModelError unless weights and places match one to one."""
    result = model.base_model.load_state_dict(state, strict=False)
    strays = [*result.unexpected_keys, *result.missing_keys]
    if strays:
        raise ModelError(f"the weights {', '.join(strays[:3])} do not fit {type(model).__name__}; nothing was saved")


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a local folder or a Hub name. Raises ModelError in one sentence when it cannot be had."""
    with loading(name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name_or_path} has no end-of-sequence token, so a model could never learn to stop: "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def load_causal_model(name_or_path: str) -> PreTrainedModel:
    """A decoder in float32, safetensors only, without remote code, with its dropout off."""
    with loading(name_or_path, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    switch_off_dropout(model)
    return model


def load_reward_model(name_or_path: str) -> PreTrainedModel:
    """A sequence classifier with one label. Raises ModelError for any other number of labels."""
    with loading(name_or_path, "reward model"):
        model = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    if model.config.num_labels != 1:
        raise ModelError(f"{name_or_path} has {model.config.num_labels} labels; a reward model has exactly one")
    switch_off_dropout(model)
    return model


@contextmanager
def loading(name_or_path: str, what: str) -> Iterator[None]:
    """Whatever goes wrong while `what` is loaded becomes a ModelError of one sentence."""
    is_local = Path(name_or_path).exists()
    try:
        with nullcontext() if is_local else no_vain_waiting():
            yield
    except (OSError, ValueError, KeyError, ImportError) as problem:
        if is_local:
            raise ModelError(f"could not load the {what} in {name_or_path}: {_first_line(problem)}") from problem
        raise ModelError(
            f"could not load the {what} '{name_or_path}': it is no local folder, and the Hub cannot be reached or has "
            f"no such model; give a folder in the Hugging Face layout, for example model=path/to/folder"
        ) from problem


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Sets every dropout to zero, in modules and config: under dropout a ratio of log-probabilities is noise."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p", "attn_dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout", "dropout"):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
