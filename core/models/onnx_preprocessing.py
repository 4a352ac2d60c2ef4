"""What an ONNX file is to be fed: as its metadata says, as its graph shows, or as networks of its kind usually are."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from core.errors import UserError
from core.images.preprocessing import RAW, Preprocessing, parse_numbers, read_channel_order
from core.models.onnx_input_map import InputMap, find_input_map, first_layers
from core.models.onnx_model import DEFAULT_IMAGE_SIZE, OnnxNetwork

__all__ = ["Choice", "choose_preprocessing", "usual_image_size"]

logger = logging.getLogger(__name__)

FEEDS = (RAW, Preprocessing((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)))
"""Inputs of graphs that normalise: pixels from 0 to 255, pixels from 0 to 1."""
IMAGENET_SIZE = 224
"""Side in pixels from which on images are taken to be those of an ImageNet network, not of a face network."""
MOST_OFF_CENTRE = 0.3
"""Of half the range: ImageNet's normalisation has at most 0.19 (blue), that of a face data set a little more."""
HALF_RANGES = (0.25, 4.0)
"""Of normalised input: (x - 127.5) / 127.5 has 1, ImageNet's normalisation at most 2.25."""
LEAST_STEP = 5.0
"""Between the means of neighbouring channels, in units of 0 to 255; ImageNet's has 7."""


@dataclass(frozen=True)
class Choice:
    """A model's preprocessing, and how it was found."""

    preprocessing: Preprocessing
    reason: str
    certain: bool = True
    """False: it is a guess."""


def choose_preprocessing(path: Path, model: onnx.ModelProto, network: OnnxNetwork) -> Choice:
    """What the network in `model`, read from `path`, is to be fed. `UserError` if its metadata make no sense."""
    found = find_input_map(path, model, network)
    shown = _feed_of(found) if found else None
    order, said = _read_metadata(path, network.metadata, shown.channel_order if shown else "RGB")
    if network.takes_pixels:
        return Choice(Preprocessing(RAW.mean, RAW.std, order), "its input is of type uint8")
    if said is not None:
        if shown and (said.mean, said.std) != (shown.mean, shown.std):
            logger.warning(
                "%s: its metadata says mean %s and std %s, but its graph normalises too and seems to take mean %s and "
                "std %s: compare the embeddings, and name what is right",
                path, said.mean, said.std, shown.mean, shown.std,
            )  # fmt: skip
        return Choice(said, "its metadata says so")
    if shown:
        return Choice(Preprocessing(shown.mean, shown.std, order), "its graph normalises by itself")
    usual = "imagenet" if network.image_size >= IMAGENET_SIZE or _begins_as_resnet(model) else "face"
    silent = found is not None and found.changes_nothing
    why = "nothing in the file says so" if silent else "its graph changes its input in a way that is not known"
    return Choice(Preprocessing.named(usual, order), f"a guess, the numbers of {usual} networks: {why}", certain=False)


def usual_image_size(model: onnx.ModelProto) -> int:
    """The side of the images, in pixels, of networks of this kind, for a model that leaves it open."""
    return IMAGENET_SIZE if _begins_as_resnet(model) else DEFAULT_IMAGE_SIZE


def _begins_as_resnet(model: onnx.ModelProto) -> bool:
    """Whether the network begins as torchvision's ResNets do, with a convolution of 7 x 7 and stride 2."""
    _, layers = first_layers(model)
    if len(layers) != 1 or layers[0].op_type != "Conv":
        return False
    attributes = {item.name: list(item.ints) for item in layers[0].attribute}
    return attributes.get("kernel_shape") == [7, 7] and attributes.get("strides") == [2, 2]


def _feed_of(found: InputMap) -> Preprocessing | None:
    """The input that a graph with this map brings into a range that networks are trained with."""
    for feed in FEEDS:
        low, high = found.offset, found.offset + found.scale * 255 / np.asarray(feed.std)
        centre, half = (low + high) / 2, np.abs(high - low) / 2
        if (np.abs(centre) <= MOST_OFF_CENTRE * half).all() and _is_usual(half, found.scale):
            return Preprocessing(feed.mean, feed.std, _channel_order(found, feed))
        if feed is RAW and np.allclose(low, 0, atol=0.01) and np.allclose(high, 1, atol=0.01):
            return RAW
    return None


def _is_usual(half: np.ndarray, scale: np.ndarray) -> bool:
    """Whether half ranges are those of normalised input, or of one from which only a mean was subtracted."""
    return bool(((half >= HALF_RANGES[0]) & (half <= HALF_RANGES[1])).all() or np.allclose(np.abs(scale), 1, rtol=0.01))


def _channel_order(found: InputMap, feed: Preprocessing) -> str:
    """BGR if the means that the graph subtracts rise from channel to channel.

    In photographs, of faces or of anything, red is the brightest colour on average and blue the darkest.
    """
    means = -found.offset / found.scale * np.asarray(feed.std)
    return "BGR" if (np.diff(means) > LEAST_STEP).all() else "RGB"


def _read_metadata(path: Path, metadata: Mapping[str, str], usual_order: str) -> tuple[str, Preprocessing | None]:
    """The channel order, or `usual_order` if it is not said; all of it, if mean and std are.

    A std below 1 is for pixels from 0 to 1, and so is the mean then.
    """
    try:
        order = read_channel_order(metadata.get("channel_order", usual_order))
        if "mean" not in metadata or "std" not in metadata:
            return order, None
        mean, std = (parse_numbers(what, metadata[what], order) for what in ("mean", "std"))
        said = Preprocessing(mean, std, order)
    except UserError as error:
        raise UserError(f"{path} has metadata that make no sense: {error}") from error
    return order, said.in_units_of_255() if max(said.std) < 1 else said
