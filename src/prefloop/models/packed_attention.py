"""Attention for the packed row, on unmodified Hugging Face models.

transformers lets a model's attention function be replaced by name and hands extra keywords through to it, so the layout
travels as the keyword `packed`. Without it the function is plain SDPA: one name serves training and generation.

Rows up to EXPLICIT_LENGTH on a CPU are computed by an explicit softmax with its own backward (torch's fused backward is
slow for short bfloat16 rows there); everything else goes through `scaled_dot_product_attention`, row by row.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefloop.batches import AttentionLayout, RowBucket
from prefloop.errors import ModelError

NAME = "prefloop_packed"
EXPLICIT_LENGTH = 512
UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: AttentionLayout | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query [1, heads, token, width] in, [1, token, heads, width] out."""
    if packed is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **keywords
        )
    for name in UNSUPPORTED:
        if keywords.get(name) is not None:
            raise ModelError(f"{type(module).__name__} uses `{name}`, which the packed training path does not compute")
    window = keywords.get("sliding_window")
    if window is not None and packed.longest_leaf > window:
        raise ModelError(
            f"a sequence of {packed.longest_leaf} tokens is longer than the model's sliding window of {window}: "
            f"set max_length to {window} or less"
        )
    if dropout > 0.0:
        raise ModelError(
            "attention dropout is not computed in the packed training path: set it to 0 in the model's config"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Under autocast rotary embeddings hand float32 queries and keys beside bfloat16 values.
    q, k, v = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    with torch.autocast(v.device.type, enabled=False):
        if v.device.type == "cpu" and packed.longest_leaf <= EXPLICIT_LENGTH:
            out = _ExplicitRows.apply(q, k, v, packed, scale)
        else:
            out = _sdpa_rows(q, k, v, packed, scale)
    return out[None], None


def register() -> str:
    """Makes the function known to transformers; the plain SDPA mask serves calls without a layout."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


@lru_cache(maxsize=64)
def _causal_mask(length: int, num_groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    mask = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
    return mask.repeat(num_groups, 1)


def _rows(tensor: Tensor, bucket: RowBucket, num_key_heads: int) -> Tensor:
    """[token, heads, width] to [rows * key heads, queries per key head * length, width]."""
    picked = tensor.index_select(0, bucket.token_index)
    shape = (bucket.num_rows, bucket.length, num_key_heads, -1, tensor.shape[-1])
    return picked.view(shape).permute(0, 2, 3, 1, 4).reshape(bucket.num_rows * num_key_heads, -1, tensor.shape[-1])


def _unrows(rows: Tensor, bucket: RowBucket, num_key_heads: int) -> Tensor:
    """The inverse of `_rows`, still by place: [rows * length, heads, width]."""
    shape = (bucket.num_rows, num_key_heads, -1, bucket.length, rows.shape[-1])
    return rows.view(shape).permute(0, 3, 1, 2, 4).reshape(bucket.num_rows * bucket.length, -1, rows.shape[-1])


class _ExplicitRows(torch.autograd.Function):
    """softmax(Q K^T * scale) V over the rows of each bucket, probabilities kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
        heads = k.shape[1]
        groups = q.shape[1] // heads
        outputs, saved = [], []
        for bucket in layout.buckets:
            query, key, value = (_rows(tensor, bucket, heads) for tensor in (q, k, v))
            mask = _causal_mask(bucket.length, groups, query.dtype, query.device)
            scores = torch.baddbmm(mask.expand(len(query), -1, -1), query, key.mT, alpha=scale)
            probabilities = torch.softmax(scores, -1)
            outputs.append(_unrows(torch.bmm(probabilities, value), bucket, heads))
            saved.append((query, key, value, probabilities))
        ctx.saved, ctx.layout, ctx.scale, ctx.shapes = saved, layout, scale, (q.shape, k.shape)
        return torch.cat(outputs).index_select(0, layout.back)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        layout, scale = ctx.layout, ctx.scale
        q_shape, k_shape = ctx.shapes
        heads = k_shape[1]
        num_places = sum(bucket.num_rows * bucket.length for bucket in layout.buckets)
        grad = grad_outputs[0]
        by_place = grad.new_zeros(num_places, *q_shape[1:]).index_add_(0, layout.back, grad)
        grads = [grad.new_zeros(q_shape), grad.new_zeros(k_shape), grad.new_zeros(k_shape)]
        at = 0
        for bucket, (query, key, value, probabilities) in zip(layout.buckets, ctx.saved, strict=True):
            size = bucket.num_rows * bucket.length
            shape = (bucket.num_rows, bucket.length, heads, -1, q_shape[-1])
            out = by_place[at : at + size].view(shape).permute(0, 2, 3, 1, 4).reshape(query.shape)
            at += size
            d_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(out, value.mT), probabilities, -1, probabilities.dtype
            )
            parts = (
                torch.bmm(d_scores, key) * scale,
                torch.bmm(d_scores.mT, query) * scale,
                torch.bmm(probabilities.mT, out),
            )
            for total, part in zip(grads, parts, strict=True):
                total.index_add_(0, bucket.token_index, _unrows(part, bucket, heads))
        return *grads, None, None


def _sdpa_rows(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """The same through torch's fused kernels, differentiated by autograd."""
    outputs = []
    for bucket in layout.buckets:
        query, key, value = (
            tensor.index_select(0, bucket.token_index)
            .view(bucket.num_rows, bucket.length, tensor.shape[1], tensor.shape[2])
            .transpose(1, 2)
            for tensor in (q, k, v)
        )
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).reshape(bucket.num_rows * bucket.length, q.shape[1], q.shape[2]))
    return torch.cat(outputs).index_select(0, layout.back)
