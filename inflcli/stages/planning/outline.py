"""A model's shapes and the cost of its passes, from its config alone: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from inflcli.ekfac.capture import Capture
from inflcli.errors import BadInput
from inflcli.model.memory import Kept
from inflcli.model.tracked import TrackedModule, find_tracked, share_tracked


@dataclass(frozen=True)
class Outline:
    """What a plan needs to know of a model."""

    modules: list[TrackedModule]
    share: float
    """Tracked parameters over all."""
    parameters: int
    vocabulary: int
    width: int
    """Of the hidden states."""
    layers: int
    heads: int
    """Of an attention."""
    context: int | None
    own_dtype: str
    """The floating-point type that the model's files hold."""
    forward: float
    """FLOPs a token, the head included."""
    backward: float
    """FLOPs a token of the backward pass through activations, down to the lowest tracked module."""
    held: float
    """Bytes a token that a pass holds for the backward, in float32."""

    def pass_flops(self, modules: list[TrackedModule], labels: int) -> float:
        """FLOPs a token of a pass that tracks only `modules`, with that many backward passes."""
        depth = self.layers - max(min(module.layer for module in modules), 0)
        whole = self.layers - max(min(module.layer for module in self.modules), 0)
        return self.forward + labels * self.backward * depth / whole


def read_outline(folder: Path, wanted: str, tokens: int, *, share: bool = True) -> Outline:
    """Outline the model in `folder`; its passes are those of sequences of `tokens` tokens.

    `wanted` and `share` are as for `find_tracked`.

    Cost: a second or so, whatever the model's size: tensors have shapes and no numbers. Raises
    BadInput for a config that makes no causal language model, and as `find_tracked` does.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # OSError, ValueError, KeyError by kind of damage
        raise _unusable(folder, error) from error
    context = getattr(config, "max_position_embeddings", None)
    tokens = max(2, min(tokens, context or tokens))
    # Shapes and types without numbers, as on the device itself: no memory is taken.
    with FakeTensorMode():
        try:
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:  # a config of no causal language model, or of an odd one
            raise _unusable(folder, error) from error
        network.requires_grad_(False).eval()
        modules = find_tracked(network, wanted, share=share)
        forward, backward, held = _pass(network, modules, tokens)
        embeddings = network.get_input_embeddings()
        return Outline(
            modules=modules,
            share=share_tracked(network, modules),
            parameters=sum(value.numel() for value in network.parameters()),
            vocabulary=int(embeddings.num_embeddings),
            width=int(embeddings.embedding_dim),
            layers=max([getattr(config, "num_hidden_layers", 1), *(m.layer + 1 for m in modules)]),
            heads=int(getattr(config, "num_attention_heads", 1)),
            context=context,
            own_dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
            forward=forward / tokens,
            backward=backward / tokens,
            held=held / tokens,
        )


def _unusable(folder: Path, error: Exception) -> BadInput:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BadInput(f"cannot outline a causal language model from {folder} ({reason})")


def _pass(
    network: nn.Module, modules: list[TrackedModule], tokens: int
) -> tuple[float, float, float]:
    """FLOPs of the forward and of the backward of one sequence, and bytes held in between."""
    batch = torch.zeros(1, tokens, dtype=torch.long)
    kept = Kept(network)
    capture = Capture(network, modules, lambda module, a, g: None, batch.shape)
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    with (
        counter,
        torch.enable_grad(),
        capture,
        kept,
    ):
        logits = network(input_ids=batch, use_cache=False).logits
        forward = counter.get_total_flops()
        for inputs in capture.held():
            kept.keep(inputs)
        logits.backward(torch.zeros_like(logits))
        both = counter.get_total_flops()
    return forward, both - forward, float(kept.bytes)


def _attend(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attend_back(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attend,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attend_back,
}
"""The CPU's attention, which torch's own counter does not know."""
