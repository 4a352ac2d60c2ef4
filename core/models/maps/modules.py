"""The networks of the maps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.models.maps.forward import FastFillNetwork, ForwardNetwork

__all__ = ["ResidualNetwork", "build_error_head", "build_module"]

FORWARD_NETWORKS = {"fct": ForwardNetwork, "fastfill": FastFillNetwork}


class ResidualNetwork(nn.Module):
    """An affine map plus a network with one hidden layer: x W + b + gelu(x W_1 + b_1) W_2. (B, D_s) to (B, D_t)."""

    def __init__(self, source_size: int, target_size: int, hidden: int):
        super().__init__()
        self.affine = nn.Linear(source_size, target_size)
        self.inner = nn.Linear(source_size, hidden)
        self.outer = nn.Linear(hidden, target_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D_s) to (B, D_t)."""
        return self.affine(x) + self.outer(nn.functional.gelu(self.inner(x)))


def build_module(kind: str, source_size: int, target_size: int, options: Mapping[str, Any]) -> nn.Module:
    """The network of a kind of map, on the meta device, so that no random numbers are drawn: load its weights."""
    with torch.device("meta"):
        if kind in ("procrustes", "ridge", "lambda_orthogonality"):
            return nn.Linear(source_size, target_size)
        if kind == "low_rank":
            rank = options["rank"]
            return nn.Sequential(nn.Linear(source_size, rank, bias=False), nn.Linear(rank, target_size))
        if kind == "mlp":
            return ResidualNetwork(source_size, target_size, options["hidden"])
        if kind in FORWARD_NETWORKS:
            return FORWARD_NETWORKS[kind](source_size, target_size, options["hidden"], options["side_size"])
    raise ValueError(f"no kind of map {kind!r}")


def build_error_head(state_dict: Mapping[str, Tensor], source_size: int) -> nn.Linear:
    """From unit vectors (B, D_s) to the logarithm of a map's squared error (B, 1), with these weights."""
    with torch.device("meta"):
        head = nn.Linear(source_size, 1)
    head.load_state_dict(state_dict, assign=True)
    return head.eval().requires_grad_(False)
