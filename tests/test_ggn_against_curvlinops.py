"""The tests' exact Gauss-Newton Hessian (`ggn.py`) is curvlinops' one, within 1e-9 relative.

curvlinops sums the loss over the data; `ggn.py` takes the mean over sequences of the sum over
tokens, so the two differ by the number of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from curvlinops import GGNLinearOperator
from ggn import GaussNewton, keep_float64
from oracle import relative
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

SEQUENCES = [[5, 17, 200, 31, 9], [40, 3, 3], [260, 11, 7, 90]]
MODULES = {
    "llama": ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"],
    "llama-bias": ["model.layers.1.mlp.gate_proj"],
    "gpt2": ["transformer.h.0.mlp.c_fc"],
    "opt": ["model.decoder.layers.0.fc1", "model.decoder.layers.1.fc2"],
}


class Logits(nn.Module):
    """The model as curvlinops wants it: token ids to logits, one row a predicted token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)


@pytest.fixture(params=MODULES)
def both(request, tiny_model, monkeypatch) -> Iterator[tuple[GaussNewton, GGNLinearOperator]]:
    keep_float64(monkeypatch)
    ours = GaussNewton(tiny_model(request.param), MODULES[request.param])
    modules = [ours.model.get_submodule(name) for name in ours.names]
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    ours.model.requires_grad_(True)  # curvlinops asks for gradients
    data = [(torch.tensor([tokens]), torch.tensor(tokens[1:])) for tokens in SEQUENCES]
    with sdpa_kernel(SDPBackend.MATH):  # the one with a forward-mode derivative
        theirs = GGNLinearOperator(
            Logits(ours.model), nn.CrossEntropyLoss(reduction="sum"), parameters, data
        )
        ours.model.requires_grad_(False)
        yield ours, theirs


def as_parameters(ours: GaussNewton, columns: Tensor) -> list[Tensor]:
    """Columns [D, K] over our matrices as a list of the model's own parameters [..., K]."""
    found = []
    parts = columns.split([shape.numel() for shape in ours.shapes])
    for name, shape, part in zip(ours.names, ours.shapes, parts, strict=True):
        module, matrix = ours.model.get_submodule(name), part.view(*shape, -1)
        weight = matrix if module.bias is None else matrix[:, :-1]
        found.append(weight.transpose(0, 1) if isinstance(module, Conv1D) else weight)
        if module.bias is not None:
            found.append(matrix[:, -1])
    return [part.contiguous() for part in found]


def from_parameters(ours: GaussNewton, parameters: list[Tensor]) -> Tensor:
    """The inverse of `as_parameters`: [D, K]."""
    parts, left = [], list(parameters)
    for name in ours.names:
        module, matrix = ours.model.get_submodule(name), left.pop(0)
        matrix = matrix.transpose(0, 1) if isinstance(module, Conv1D) else matrix
        if module.bias is not None:
            matrix = torch.cat([matrix, left.pop(0)[:, None]], 1)
        parts.append(matrix.flatten(0, 1))
    return torch.cat(parts)


def test_product(both):
    ours, theirs = both
    torch.manual_seed(0)
    v = torch.randn(ours.size, 3, dtype=torch.float64)
    expected = from_parameters(ours, theirs @ as_parameters(ours, v)) / len(SEQUENCES)
    found = torch.stack([ours.product(SEQUENCES, column) for column in v.T], 1)
    assert relative(found, expected) < 1e-9


def test_matrix(both):
    ours, theirs = both
    eye = torch.eye(ours.size, dtype=torch.float64)
    expected = from_parameters(ours, theirs @ as_parameters(ours, eye)) / len(SEQUENCES)
    assert relative(ours.matrix(SEQUENCES), expected) < 1e-9
