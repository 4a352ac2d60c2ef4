"""What the command lines of the tools share: the parser, and the options of evaluations of one model or two."""

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import torch

from core.embeddings.cache import require_cache
from core.errors import UserError
from core.images.preprocessing import CHANNEL_ORDERS
from core.models.encoder import Encoder, load_encoder
from core.models.shared_space import require_shared_space
from core.outputs import require_writable

__all__ = [
    "ArgumentParser",
    "add_arguments",
    "add_preprocessing_arguments",
    "add_run_arguments",
    "check_arguments",
    "check_run_arguments",
    "choose_device",
    "load_models",
    "preprocessing",
]


class ArgumentParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that shows defaults in `--help` and raises `UserError` on a wrong command line."""

    def __init__(self, description: str, **options: Any):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise `message` as a `UserError` that points to `--help`."""
        raise UserError(f"{message} (see {self.prog} --help)")


def add_arguments(parser: ArgumentParser, batch_size: int, cache: Path) -> None:
    """A model or two, and what `add_run_arguments` adds."""
    parser.add_argument("-m", "--model", required=True, help="(new) model: run folder, .pt state dict or .onnx file")
    parser.add_argument("-net", "--network", help="network of -m, needed for a bare state dict")
    add_preprocessing_arguments(parser)
    parser.add_argument("-m_old", "--model-old", help="old model, that made the gallery: a cross-test")
    parser.add_argument("-old_net", "--network-old", help="network of -m_old, needed for a bare state dict")
    add_preprocessing_arguments(parser, "-old", "-m_old")
    add_run_arguments(parser, batch_size, cache)


def add_preprocessing_arguments(parser: ArgumentParser, suffix: str = "", model: str = "-m") -> None:
    """What the model of the option `model` is fed, where it is not known or known wrongly."""
    numbers = "0 to 255: a number, three by channel, or face or imagenet; without it what is known of the model"
    parser.add_argument("--mean" + suffix, nargs="+", metavar="X", help=f"mean of the input of {model}, {numbers}")
    parser.add_argument("--std" + suffix, nargs="+", metavar="X", help="its standard deviation, given likewise")
    parser.add_argument("--channel-order" + suffix, choices=CHANNEL_ORDERS, help="that of its input")


class Told(TypedDict):
    """Arguments of `load_encoder`."""

    mean: str | None
    std: str | None
    channel_order: str | None


def preprocessing(args: Namespace, suffix: str = "") -> Told:
    """The values of `add_preprocessing_arguments`."""
    mean, std = (getattr(args, what + suffix) for what in ("mean", "std"))
    order = getattr(args, "channel_order" + suffix)
    return {"mean": mean and " ".join(mean), "std": std and " ".join(std), "channel_order": order}


def add_run_arguments(parser: ArgumentParser, batch_size: int, cache: Path) -> None:
    """Device, batches, cache and output folder."""
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images embedded at a time")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or cuda:1 and so on")
    parser.add_argument("--cache", type=Path, default=cache, help="where embeddings are kept for later tests")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; made if its parent exists")


def check_arguments(args: Namespace) -> None:
    """Report the mistakes in `add_arguments`' part that need no other file; `args.device` becomes a torch device."""
    if args.network_old and not args.model_old:
        raise UserError("-old_net names the network of an old model, but there is no -m_old")
    if any(preprocessing(args, "_old").values()) and not args.model_old:
        raise UserError("--mean-old, --std-old and --channel-order-old are of an old model, but there is no -m_old")
    check_run_arguments(args)


def check_run_arguments(args: Namespace) -> None:
    """Report the mistakes in `add_run_arguments`' part; `args.device` becomes a torch device."""
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError("--batch-size must be 1 or more and --num-workers 0 or more")
    if not args.out.parent.is_dir() or (args.out.exists() and not args.out.is_dir()):
        raise UserError(f"--out {args.out}: its parent is no folder, or it is a file; name a folder to make or to use")
    require_writable(args.out)
    try:
        require_cache(args.cache)
    except UserError as error:
        raise UserError(f"--cache: {error}") from error
    args.device = choose_device(args.device)


def choose_device(name: str) -> torch.device:
    """The device of that name; `UserError` if PyTorch does not know it or this machine does not have it."""
    num_gpus = torch.cuda.device_count()
    try:
        device = torch.device(name if name != "auto" else "cuda" if num_gpus else "cpu")
    except RuntimeError as error:
        raise UserError(f"unknown --device {name!r}: name auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= num_gpus):
        raise UserError(f"--device {name} is not here: PyTorch sees {num_gpus} GPUs; name auto or cpu")
    return device


def load_models(args: Namespace) -> tuple[Encoder, Encoder]:
    """Query and gallery model, one and the same object without -m_old; `UserError` if they cannot be compared."""
    query = load_encoder(args.model, args.network, args.device, **preprocessing(args))
    gallery = query
    if args.model_old:
        gallery = load_encoder(
            args.model_old, args.network_old, args.device, **preprocessing(args, "_old"), network_option="-old_net"
        )
    if query.embedding_size != gallery.embedding_size:
        raise UserError(
            f"the models cannot be compared: {args.model} gives {query.embedding_size} numbers an embedding, "
            f"{args.model_old} {gallery.embedding_size}; fit a map between them (docs/maps.md)"
        )
    require_shared_space(query, gallery)
    return query, gallery
