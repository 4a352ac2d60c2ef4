"""Class weights in files: a run folder's classifier, or what arcface_torch saves, a file for each of its ranks.

Our `classifier.pt` holds {"weight": (C, D) float32} and, for a classifier with a bias, "bias" (C,), whole. Each rank of
arcface_torch saves the rows of its own classes, the first rank those of the first classes: in
`softmax_fc_gpu_<rank>.pt` the state dict of its classifier (`weight` alone), in `checkpoint_gpu_<rank>.pt` the same
among other things, and in its first versions in `rank_<rank>_softmax_weight.pt` the tensor alone.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from core.backbones.state_dicts import require_real
from core.backbones.weight_files import read_weight_file
from core.errors import UserError
from core.files import require_file
from core.heads.partial_fc import PartialFC

__all__ = ["ClassWeights", "read_class_weights", "read_classifier_file"]

logger = logging.getLogger(__name__)

CLASSIFIER = "classifier.pt"
PATTERNS = (
    "softmax_fc_gpu_*.pt",
    "checkpoint_gpu_*.pt",
    "rank_*_softmax_weight.pt",
    "rank:*_softmax_weight.pt",
)
"""arcface_torch's files in the order in which a folder is searched for them; the star is the rank."""
IN_CHECKPOINT = "state_dict_softmax_fc"


@dataclass(frozen=True)
class ClassWeights:
    """The weights of C classes, and their biases if they have any, memory-mapped from one or more files."""

    source: str
    """The files, for messages."""
    weights: Sequence[Tensor]
    """(n, D) each; together, in this order, (C, D)."""
    biases: Sequence[Tensor]
    """(n,) each, beside `weights`; empty without a bias."""

    @property
    def num_classes(self) -> int:
        """C."""
        return sum(map(len, self.weights))

    @property
    def embedding_size(self) -> int:
        """D."""
        return self.weights[0].shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """`weight` (C, D) and, if there is one, `bias` (C,), float32, whole."""
        tensors = {"weight": _rows(self.weights, 0, self.num_classes, self.source)}
        return tensors | ({"bias": _rows(self.biases, 0, self.num_classes, self.source)} if self.biases else {})

    @torch.no_grad()
    def load_into(self, classifier: PartialFC) -> None:
        """Copy the rows of this rank's classes, read here alone. The numbers of classes and D must be the same.

        A bias that only one of the two has is left out, or stays 0, and logged.
        """
        start = classifier.class_start
        end = start + classifier.num_local
        classifier.weight.copy_(_rows(self.weights, start, end, self.source))
        if classifier.bias is not None and self.biases:
            classifier.bias.copy_(_rows(self.biases, start, end, self.source))
        elif classifier.bias is not None:
            classifier.bias.zero_()
            logger.info("%s has no bias: that of the classifier starts at 0", self.source)
        elif self.biases:
            logger.info("the bias in %s is left out: the classifier has none", self.source)


def _rows(parts: Sequence[Tensor], start: int, end: int, source: str) -> Tensor:
    """Rows `start` to `end` of the tensors one after the other, float32; `UserError` if they are not finite."""
    found, first = [], 0
    for part in parts:
        found.append(part[max(start - first, 0) : max(end - first, 0)].float())
        first += len(part)
    rows = torch.cat(found)
    if not rows.isfinite().all():
        raise UserError(f"the class weights in {source} are not all finite: their training diverged; name others")
    return rows


def read_class_weights(path: Path, num_classes: int, embedding_size: int) -> ClassWeights:
    """The weights of `num_classes` classes at `path`, opened; `UserError` if they are others.

    `path` is a folder (a run folder, or arcface_torch's output), a file, or the pattern of files such as
    `folder/softmax_fc_gpu_*.pt`, whose star stands for the rank.
    """
    files = _find_files(path)
    contents = [read_classifier_file(file) for file in files]
    source = str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}"
    found = ClassWeights(source, [c["weight"] for c in contents], [c["bias"] for c in contents if "bias" in c])
    sizes = {weight.shape[1] for weight in found.weights}
    if len(sizes) > 1 or len(found.biases) not in (0, len(files)):
        raise UserError(f"{source}: the files are not of one classifier (embedding sizes {sorted(sizes)})")
    if found.embedding_size != embedding_size:
        raise UserError(
            f"the class weights in {source} are for embeddings of size {found.embedding_size}, not {embedding_size}: "
            f"set embedding_size={found.embedding_size}, or name others"
        )
    if found.num_classes != num_classes:
        one_rank = len(files) == 1 and any(_ranks([files[0]], pattern) for pattern in PATTERNS)
        hint = "name the folder, to join the files of all ranks" if one_rank else "name those of the same classes"
        raise UserError(
            f"the class weights in {source} are of {found.num_classes} classes, but the data have {num_classes}: {hint}"
        )
    logger.info("class weights of %d classes: %s (%d files)", num_classes, source, len(files))
    return found


def _find_files(path: Path) -> list[Path]:
    """The files of a `path` of `read_class_weights`, in the order of their classes."""
    if "*" in path.name:
        files = _files_of_ranks(path.parent, path.name)
        if not files:
            raise UserError(f"no class weights match {path}: the star stands for the ranks 0, 1, 2 and so on")
        return files
    if not path.is_dir():
        return [require_file(path, "class weights")]
    if (path / CLASSIFIER).is_file():
        return [path / CLASSIFIER]
    for pattern in PATTERNS:
        files = _files_of_ranks(path, pattern)
        if files:
            return files
    raise UserError(f"no class weights in {path}: expected {CLASSIFIER} of a run folder, or {' or '.join(PATTERNS)}")


def _files_of_ranks(folder: Path, pattern: str) -> list[Path]:
    """The files in `folder` that match, by rank. `UserError` if a rank before the last is missing."""
    by_rank = _ranks(list(folder.iterdir()) if folder.is_dir() else [], pattern)
    missing = sorted(set(range(max(by_rank, default=-1))) - set(by_rank))
    if missing:
        name = pattern.replace("*", str(missing[0]))
        raise UserError(f"{folder} has the class weights of rank {max(by_rank)}, but not {name}: all ranks' are needed")
    return [by_rank[rank] for rank in sorted(by_rank)]


def _ranks(files: Sequence[Path], pattern: str) -> dict[int, Path]:
    """The files whose names match, by the number in the place of the star."""
    before, _, after = pattern.partition("*")
    expression = re.compile(f"{re.escape(before)}(\\d+){re.escape(after)}")
    return {int(match[1]): file for file in files if (match := expression.fullmatch(file.name))}


def read_classifier_file(path: Path) -> dict[str, Tensor]:
    """`weight` (C, D) and, if there is one, `bias` (C,) of a file, memory-mapped; `UserError` if it holds none.

    The log says it where they are not float32.
    """
    content = read_weight_file(path)
    if isinstance(content, dict) and IN_CHECKPOINT in content:
        content = content[IN_CHECKPOINT]
    tensors = {"weight": content} if isinstance(content, Tensor) else content
    if not _is_classifier(tensors):
        raise UserError(f"{path} is not a classifier: expected weight (C, D) and bias (C,)")
    if any(not tensor.is_floating_point() and not tensor.is_complex() for tensor in tensors.values()):
        raise UserError(f"{path} is not a classifier: its weights are {tensors['weight'].dtype}, not real numbers")
    require_real(tensors, path)
    return tensors


def _is_classifier(tensors: object) -> TypeGuard[dict[str, Tensor]]:
    if not (isinstance(tensors, dict) and set(tensors) in ({"weight"}, {"weight", "bias"})):
        return False
    weight, bias = tensors["weight"], tensors.get("bias")
    return (
        isinstance(weight, Tensor)
        and weight.ndim == 2
        and (bias is None or (isinstance(bias, Tensor) and bias.shape == weight.shape[:1]))
    )
