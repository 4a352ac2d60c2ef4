"""A fitted map between the spaces of two models, and its run folder.

The run folder has `map.pt` (the state dict of the map's network and, below `error_head.`, that of the prediction of its
error) and `config.json`, whose entry `map` describes it.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones.weight_files import read_weight_file
from core.errors import UserError
from core.files import reading, require_file
from core.json_files import read_json
from core.models.maps.modules import build_error_head, build_module
from core.models.maps.threads import in_shares
from core.models.maps.vectors import SAFE_LENGTHS, Space, Vectors, open_vectors, unit_rows
from core.models.weights import fingerprint, require_sound
from core.outputs import make_folder, replaced_together, writing

__all__ = ["Map", "load_map"]

AGAIN = "fit the map again"
ERROR_HEAD = "error_head."
"""Before the names of its tensors in `map.pt`."""


@dataclass(frozen=True, eq=False)
class Map:
    """Leads from the source's space to the target's: called with vectors of the one it returns vectors of the other."""

    kind: str
    source: Space
    target: Space
    module: nn.Module
    """From unit vectors (B, D_s) to plain output (B, D_t), float32; on the CPU."""
    num_pairs: int
    """That it was fitted on."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of its kind, as used."""
    penalty: float | None = None
    """Of a ridge: the one that was used."""
    error_head: nn.Linear | None = None
    """From unit vectors (B, D_s) to the predicted logarithm of the squared error (B, 1). A network that predicts it by
    itself has a method `log_error(unit vectors) -> (B,)` instead."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the network's state dict."""
        return fingerprint(self.module.state_dict())

    def __call__(self, vectors: Vectors, normalized: bool = True, out: np.ndarray | None = None) -> np.ndarray:
        """Vectors (N, D_s) of the source's space, of any length, to unit vectors (N, D_t), float32.

        `normalized=False` gives the network's plain output, in which uncertain vectors are short. The result is written
        to `out` if it is given, which may be memory-mapped. Memory beside it: a block of rows a thread. `UserError` for
        vectors of another size, a store of another model, and a row without a direction.
        """
        rows, space = open_vectors(vectors, "vectors")
        self.require_source(space)
        shape = (len(rows), self.target.size)
        out = np.empty(shape, np.float32) if out is None else out
        if out.shape != shape or out.dtype != np.float32:
            raise ValueError(f"out is {out.dtype} {out.shape}, not float32 {shape}")

        def map_block(block: Tensor, scales: Tensor, result: Tensor) -> None:
            mapped = _apply(self.module, block, scales, result)
            if normalized:
                mapped.mul_(1 / _lengths(mapped).clamp_(min=SAFE_LENGTHS[0]))

        _fill_blocks(out, rows, map_block)
        return out

    def predicted_error(self, vectors: Vectors) -> np.ndarray | None:
        """Of vectors (N, D_s) the squared error that the map expects to make with each, (N,) float32.

        Of FastFill, whose training sums it with a cross-entropy, the expected sum. None if the map cannot tell.
        Memory and errors as when vectors are mapped.
        """
        own = cast(Callable[[Tensor], Tensor] | None, getattr(self.module, "log_error", None))
        predict = self.error_head or own
        if predict is None:
            return None
        rows, space = open_vectors(vectors, "vectors")
        self.require_source(space)
        errors = np.empty(len(rows), np.float32)

        def predict_block(block: Tensor, scales: Tensor, result: Tensor) -> None:
            result.copy_(predict(block * scales).reshape(-1).exp())

        _fill_blocks(errors, rows, predict_block)
        return errors

    def lengths(self, vectors: Vectors) -> np.ndarray:
        """Of vectors (N, D_s) the lengths of the map's plain output, (N,) float32: shorter where it is less certain.

        A ridge's output f(v) is the mean of the unit vectors u that belong to v, as far as that mean is affine, and it
        misses them by E |u - f|² = 1 - |f|². A rotation's lengths say nothing, they are all 1. Memory and errors as
        when vectors are mapped.
        """
        rows, space = open_vectors(vectors, "vectors")
        self.require_source(space)
        lengths = np.empty(len(rows), np.float32)

        def measure_block(block: Tensor, scales: Tensor, result: Tensor) -> None:
            mapped = torch.empty(len(block), self.target.size)
            result.copy_(_lengths(_apply(self.module, block, scales, mapped)).reshape(-1))

        _fill_blocks(lengths, rows, measure_block)
        return lengths

    def require_source(self, space: Space) -> None:
        """`UserError` unless vectors of this space may be mapped."""
        if space.size != self.source.size:
            side = self.options.get("side_size")
            parts = f" ({self.source.size - side} of the old model, then {side} of side information)" if side else ""
            raise UserError(
                f"this map takes vectors of size {self.source.size}{parts}, got size {space.size}: it leads from "
                f"{self.source} to {self.target}"
            )
        if None not in (space.fingerprint, self.source.fingerprint) and space.fingerprint != self.source.fingerprint:
            raise UserError(
                f"these vectors are of {space}, but the map leads from {self.source} to {self.target}: give vectors "
                "of that model, or a map that was fitted for this one"
            )

    def save(self, folder: str | Path, config: Mapping[str, Any] | None = None) -> None:
        """Write the run folder, which is made if it is missing; `config` are further entries of its `config.json`.

        `UserError` if it holds a model, whose config would be lost, or the disk refuses.
        """
        folder = Path(folder)
        if (folder / "model.pt").exists():
            raise UserError(f"{folder} is the run folder of a model, whose config would be lost: name another folder")
        with writing(folder):
            make_folder(folder)
        described = {
            "kind": self.kind,
            "source": asdict(self.source),
            "target": asdict(self.target),
            "num_pairs": self.num_pairs,
            "options": dict(self.options),
            "penalty": self.penalty,
            "fingerprint": self.fingerprint,
        }
        tensors = dict(self.module.state_dict())
        if self.error_head is not None:
            tensors |= {ERROR_HEAD + name: tensor for name, tensor in self.error_head.state_dict().items()}
        with replaced_together(folder / "map.pt", folder / "config.json") as (weights, about):
            torch.save(tensors, weights)
            about.write_text(json.dumps({**(config or {}), "map": described}, indent=2) + "\n")


def load_map(folder: str | Path) -> Map:
    """The map of a run folder; `UserError` if a file is missing or damaged, or the two are not of the same map."""
    folder = Path(folder)
    file = folder / "config.json"
    described = read_json(file, "config of the map's run folder", AGAIN)
    tensors = _read_tensors(folder / "map.pt")
    head = {name.removeprefix(ERROR_HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(ERROR_HEAD)}
    with reading(file, "description of a map", AGAIN):
        described = described["map"]
        source, target = Space(**described.pop("source")), Space(**described.pop("target"))
        expected = described.pop("fingerprint")
        module = build_module(described["kind"], source.size, target.size, described["options"])
        if fingerprint(tensors) != expected:
            raise UserError(
                f"{folder / 'map.pt'} is not the map that {file} describes: one of them is damaged, fit it again"
            )
        error_head = build_error_head(head, source.size) if head else None
        loaded = Map(source=source, target=target, module=module, error_head=error_head, **described)
        module.load_state_dict(tensors, assign=True)
    for part in (module, *([error_head] if error_head is not None else [])):
        require_sound(part, folder / "map.pt")
    module.eval().requires_grad_(False)
    return loaded


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `map.pt` by name."""
    content = read_weight_file(require_file(path, "weights of the map"))
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{path} is not the state dict of a map: fit the map again")
    for name, tensor in content.items():
        if tensor.dtype not in (torch.float32, torch.int64) or tensor.layout != torch.strided:
            raise UserError(f"{path} is not a map's as it was saved: {name} is {tensor.dtype}; fit the map again")
    return dict(content)


def _fill_blocks(out: np.ndarray, rows: np.ndarray, compute: Callable[[Tensor, Tensor, Tensor], object]) -> None:
    """Let `compute` write to the rows of `out` what it makes of the rows (N, D) of vectors, block by block.

    It is called with rows (n, D), one over the length of each (n, 1), and the rows of `out`.
    """

    @torch.inference_mode()
    def fill(blocks: list[slice]) -> None:
        for block in blocks:
            compute(*_read_block(rows, block), result[block])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        result = torch.from_numpy(out)
        in_shares(len(rows), fill)


def _read_block(vectors: np.ndarray, rows: slice) -> tuple[Tensor, Tensor]:
    """The rows of `vectors` (N, D), perhaps scaled, and one over the length (n, 1) of each as they are given here."""
    block = torch.from_numpy(np.ascontiguousarray(vectors[rows], dtype=np.float32))
    lengths = _lengths(block)
    shortest, longest = torch.aminmax(lengths)
    if not (shortest > SAFE_LENGTHS[0] and longest < SAFE_LENGTHS[1]):  # also where one is not a number
        units = unit_rows(vectors, rows, "vectors", np.empty(block.shape, np.float32))
        return torch.from_numpy(units), torch.ones_like(lengths)
    return block, 1 / lengths


def _apply(module: nn.Module, rows: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """The module's output for rows (n, D) times `scales` (n, 1), in `out`."""
    if isinstance(module, nn.Linear):  # its products are scaled, not the rows: a pass over memory less
        products = torch.mm(rows, module.weight.T, out=out)
        return torch.addcmul(module.bias, products, scales, out=out)
    return out.copy_(module(rows * scales))


def _lengths(vectors: Tensor) -> Tensor:
    """Of the rows (N, D), as (N, 1)."""
    return torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
