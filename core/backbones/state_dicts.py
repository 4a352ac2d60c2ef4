"""The network in a file of weights, in the wrappings that training programs save it in."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from core.backbones import Layout, build_backbone, read_layout
from core.backbones.file_kinds import EXPORT, SAVE
from core.backbones.other_names import own_names
from core.backbones.weight_files import PICKLED_NETWORK, holds_pickled_network, read_weight_file, tensors_in
from core.errors import UserError

__all__ = ["read_state_dict", "require_real"]

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

WRAPPERS = ("state_dict_backbone", "state_dict", "model", "backbone")
"""Where a file has several networks, what lies under these keys comes first, in this order."""
NAME_PREFIXES = ("module.", "_orig_mod.")
INSERTED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Put into names, at any place, by torch.compile, FSDP and activation checkpointing."""
AVERAGED = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|averag|shadow", re.IGNORECASE)
"""In the names of copies whose weights are means over the training."""
TRAINING_ONLY = ("cls_fc", "BCT_FC", "projection_cls", "discriminator", "eboundary")
"""Beside the encoder in the released code of MixBCT and AdvBCT."""
TRAINING = re.compile(
    r"cls|class|softmax|logit|margin|arcface|cosface|kernel|proxy|proto|loss|criteri|metric|optim|sched|scaler|callback",
    re.IGNORECASE,
)
"""In the names of classifiers and of what else only a training needs."""
FOLLOWING = re.compile(r"neck|whiten|proj|pca|reduc|embed|norm|bn|bottle", re.IGNORECASE)
"""In the names of layers that may follow a backbone as part of the model."""


@dataclass(frozen=True)
class Candidate:
    """A network in a file."""

    prefix: str
    """Of its names in the file, ending in a dot unless it is empty."""
    tensors: Tensors
    """By this project's names."""
    layout: Layout
    beside: frozenset[str]
    """Names in the file that begin with `prefix` and are not the network's."""


def read_state_dict(path: str | Path, network: str | None = None) -> Tensors:
    """The tensors of the network in a file of torch.save or safetensors, on the CPU, floating-point ones in float32.

    The network may be at any depth of the file's dicts, below any prefix of its names; networks of torchvision, timm,
    cnnimageretrieval, AdvBCT and AdaFace get this project's names. Classifiers and what else belongs to the training
    are left out, and a line of the log names them. Of several networks the log says which was taken: `network` rather
    than another, trained weights rather than their means. What may be part of the model stays, so that building the
    network refuses it. Where no network is known, the state dict is given as it is, if it is the file's content or
    under one of `WRAPPERS`. `UserError` if there is no file, if it cannot be read, or if it has no weights or several
    networks that could be meant. Weights that are quantised, sparse, without memory or complex are refused; the log
    says which were not float32.
    """
    path = Path(path)
    content = read_weight_file(path)
    tensors = {INSERTED.sub("", name): tensor for name, tensor in tensors_in(content).items()}
    meta = content.get("meta") if isinstance(content, dict) else None
    candidates = _find_networks(tensors, "", meta, path)
    state_dict = _take(candidates, tensors, network, path) if candidates else _unknown_network(content, tensors, path)
    require_real(state_dict, path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}


def require_real(tensors: Tensors, path: Path) -> None:
    """`UserError` for tensors of a file that are not just real or whole numbers in memory.

    A line of the log says it where real ones are not float32, as which they are to be read.
    """
    for name, tensor in tensors.items():
        if tensor.is_quantized:
            raise UserError(f"{path} holds quantised weights, which are not read: {EXPORT}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = "without their numbers" if tensor.device.type == "meta" else "sparse"
            raise UserError(f"{path} holds {kind} weights ({name}), which are not read: {SAVE}, densely")
        if tensor.is_complex():
            raise UserError(f"{path} holds complex weights ({name}), which no network here has: {EXPORT}")
    others = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()} - {"float32"}
    if others:
        logger.info("%s: its weights, %s, are read as float32", path, " and ".join(sorted(others)))


def _find_networks(tensors: Tensors, prefix: str, meta: Any, path: Path) -> list[Candidate]:
    """The known networks below `prefix`, which the names in `tensors` do not have any more."""
    own, layout = tensors, read_layout(_shapes(tensors))
    if layout is None:
        own = own_names(tensors, meta, path) or {}
        layout = read_layout(_shapes(own))
    found, rest = [], tensors
    if layout is not None:
        modules = _modules_of(layout)
        network = {name: tensor for name, tensor in own.items() if _first(name) in modules}
        rest = {name: tensor for name, tensor in own.items() if name not in network}
        found.append(Candidate(prefix, network, layout, frozenset(prefix + name for name in rest)))
    groups: dict[str, Tensors] = {}
    for name, tensor in rest.items():
        first, _, below = name.partition(".")
        if below:
            groups.setdefault(first, {})[below] = tensor
    return found + [
        c for first, group in groups.items() for c in _find_networks(group, f"{prefix}{first}.", meta, path)
    ]


def _modules_of(layout: Layout) -> set[str]:
    """First parts of the names in the network's state dict."""
    with torch.device("meta"):
        options = {**layout.options, "image_size": layout.image_size}
        module = build_backbone(layout.names[0], layout.embedding_size, **options)
    return {_first(name) for name in module.state_dict()}


def _take(candidates: list[Candidate], tensors: Tensors, network: str | None, path: Path) -> Tensors:
    """The tensors of the network that is meant, and those beside it that may be part of the model; the log says it."""
    chosen = _choose(candidates, network, path)
    state_dict, left_out = chosen.tensors, []
    for group, members in _groups_beside(chosen, tensors).items():
        is_other = any(c is not chosen and c.prefix.startswith(f"{group}.") for c in candidates)
        if not is_other and _may_be_part(group, members, chosen):
            state_dict = state_dict | members
        else:
            left_out.append(group)
    told = [f"the network is under {chosen.prefix.removesuffix('.')}"] if chosen.prefix else []
    told += [f"left out: {', '.join(left_out)}"] if left_out else []
    if told:
        logger.info("%s: %s", path, "; ".join(told))
    return state_dict


def _choose(candidates: list[Candidate], network: str | None, path: Path) -> Candidate:
    """Of `network` rather than another, trained and not averaged, no part of a loss, and by the order of `WRAPPERS`."""
    fitting = [c for c in candidates if network in c.layout.names] or candidates
    for unwanted in (AVERAGED, TRAINING):
        fitting = [c for c in fitting if not unwanted.search(c.prefix)] or fitting
    ranks = [[*WRAPPERS, _first(c.prefix)].index(_first(c.prefix)) for c in fitting]
    fitting = [c for c, rank in zip(fitting, ranks) if rank == min(ranks)]
    if all(_same(c.tensors, fitting[0].tensors) for c in fitting[1:]):
        return fitting[0]
    places = ", ".join(c.prefix.removesuffix(".") or "the top level" for c in fitting)
    raise UserError(f"{path} holds several networks, under {places}: for the one that is meant, {SAVE}")


def _groups_beside(chosen: Candidate, tensors: Tensors) -> dict[str, Tensors]:
    """The tensors outside the network, grouped by where their names leave its prefix."""
    prefix = chosen.prefix.split(".")[:-1]
    groups: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        if not name.startswith(chosen.prefix) or name in chosen.beside:
            parts = name.split(".")
            shared = next((i for i, part in enumerate(prefix) if part != parts[i]), len(prefix))
            groups.setdefault(".".join(parts[: shared + 1]), {})[name.removeprefix(chosen.prefix)] = tensor
    return groups


def _may_be_part(group: str, members: Tensors, chosen: Candidate) -> bool:
    """Whether a group of tensors beside the network may follow it as a part of the model.

    A classifier is a matrix with the embedding size as one side. After a pooled feature such a matrix may as well make
    the embedding.
    """
    name, size = group.rpartition(".")[2], chosen.layout.embedding_size
    if name in TRAINING_ONLY or all(tensor.numel() <= 1 for tensor in members.values()):
        return False
    matrices = [tensor for tensor in members.values() if tensor.ndim > 1]
    classifier = len(matrices) > 0 and all(tensor.ndim == 2 and size in tensor.shape for tensor in matrices)
    if TRAINING.search(name):
        return group.startswith(chosen.prefix) and not classifier
    if FOLLOWING.search(name):
        return True
    if group.startswith(chosen.prefix):
        return not classifier or chosen.layout.ends_in_pooling
    return classifier and chosen.layout.ends_in_pooling


def _unknown_network(content: Any, tensors: Tensors, path: Path) -> Tensors:
    """A state dict in which no network is known, under one of `WRAPPERS` or not, without the prefixes of its names."""
    if isinstance(content, dict) and not _is_state_dict(content):
        content = next((content[key] for key in WRAPPERS if _is_state_dict(content.get(key))), content)
    if _is_state_dict(content):
        plain = {_plain_name(name): tensor.detach() for name, tensor in content.items()}
        return {name: tensor for name, tensor in plain.items() if _first(name) not in TRAINING_ONLY}
    if holds_pickled_network(content):
        raise UserError(f"cannot read weights from {path}: it holds {PICKLED_NETWORK}; {SAVE}, or {EXPORT}")
    if tensors:
        names = ", ".join([*tensors][:2])
        raise UserError(f"{path} holds no network that is known here (among its names are {names}): {EXPORT}")
    raise UserError(f"{path} has no weights: expected a state dict (names and tensors) written by torch.save")


def _is_state_dict(content: object) -> TypeGuard[Tensors]:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _plain_name(name: str) -> str:
    while name.startswith(NAME_PREFIXES):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return name


def _first(name: str) -> str:
    return name.partition(".")[0]


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
