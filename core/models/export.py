"""A trained encoder, or a map's run folder, as one ONNX file that any runtime, and the `insightface` package, can load.

The file has one input `input`, float32 (batch, 3, H, W), already normalised, with a dynamic batch and fixed H and W,
and one output `embedding`, float32 (batch, D), not normalised. Its metadata: `network`, `embedding_size`, `input_size`
(side in pixels), `mean` and `std` (JSON lists by channel of the input, in units of 0 to 255), `channel_order` (RGB, or
BGR of an encoder that was told so), `fingerprint` (the encoder's) and, for a model trained to be compatible,
`old_model_fingerprint`.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.models.encoder import Encoder
from core.models.onnx_merge import join_graphs
from core.models.onnx_model import OnnxNetwork
from core.outputs import replaced_atomically
from core.room import require_room

__all__ = ["export_onnx", "to_onnx", "worst_difference"]

logger = logging.getLogger(__name__)

MAX_BYTES = 2**31 - 2**24
"""A protobuf message, and so an ONNX file without external data, is limited to 2 GiB; 16 MiB are left for the graph."""
TOLERANCE = 1e-4
"""Bound on `worst_difference`."""
CHECKED_BATCHES = (1, 3)


def export_onnx(encoder: Encoder, path: str | Path) -> float:
    """Write `encoder` to `path` if ONNX Runtime computes PyTorch's embeddings; return the `worst_difference`.

    `UserError`, and nothing is written, if the encoder is an ONNX model, if it is too large for one file, if the folder
    of `path` does not exist, or if the embeddings differ or are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"the output {path} is a folder: name a file")
    if isinstance(encoder.module, OnnxNetwork):
        raise UserError(f"model {encoder.name} is already an ONNX file: give a run folder or a .pt file")
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.module.state_dict().values())
    if size > MAX_BYTES:
        raise UserError(
            f"model {encoder.name} has {size / 2**30:.1f} GiB of weights: one ONNX file cannot be larger than 2 GiB; "
            "export a smaller network"
        )
    require_room(path, size)
    with replaced_atomically(path) as temporary:
        onnx.save_model(to_onnx(encoder), temporary)
        difference = worst_difference(encoder, temporary)
        if not difference <= TOLERANCE:
            raise UserError(
                f"the ONNX form of model {encoder.name} does not give PyTorch's embeddings: nothing written to {path}; "
                f"difference {difference:.2g}, allowed {TOLERANCE:.0e}; are all weights finite?"
            )
    return difference


def to_onnx(encoder: Encoder) -> onnx.ModelProto:
    """The ONNX model of the encoder's module, with its metadata, unchecked; of a map's run folder all models and maps.

    `UserError` if the base of a map is an ONNX file that the map cannot be joined to.
    """
    foreign = [model.module for model in encoder.trained if isinstance(model.module, OnnxNetwork)]
    if foreign:
        model = _joined(encoder, foreign[0])
    else:
        images = torch.zeros(2, 3, encoder.image_size, encoder.image_size, device=encoder.device)
        model = _traced(encoder.module, images, "input")
    metadata = {
        "network": encoder.network,
        "embedding_size": encoder.embedding_size,
        "input_size": encoder.image_size,
        "mean": json.dumps(encoder.mean),
        "std": json.dumps(encoder.std),
        "channel_order": encoder.channel_order,
        "fingerprint": encoder.fingerprint,
    }
    if encoder.old_model_fingerprint is not None:
        metadata["old_model_fingerprint"] = encoder.old_model_fingerprint
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    return model


def _traced(module: nn.Module, inputs: Tensor, input_name: str) -> onnx.ModelProto:
    """A module with one output, `embedding`, and a dynamic batch."""
    with _silence():
        program = torch.onnx.export(
            module,
            (inputs,),
            dynamo=True,
            input_names=[input_name],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    assert program is not None, "the exporter returns a program where it is given no file to write"
    model = program.model_proto
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.ClearField("metadata_props")  # the exporter's notes, with stack traces that name this machine's folders
    return model


def _joined(encoder: Encoder, base: OnnxNetwork) -> onnx.ModelProto:
    """The graph of a foreign base model, followed by the maps behind it."""
    if len(encoder.trained) > 1:
        raise UserError(
            f"{encoder.name} takes the embeddings of several models, one of them the ONNX file {base.path}, which "
            "cannot be joined to others: use the run folder, or fit the map to models in PyTorch"
        )
    about = f"the base model of {encoder.name} is the ONNX file {base.path}"
    if base.takes_pixels or base.channels_last:
        raise UserError(
            f"{about}, whose input is {base.inputs[0].type} {base.inputs[0].shape}: a map is joined to one of float "
            "(batch, 3, height, width) alone; export the base model so, and fit the map to that"
        )
    maps = [mapped.mapping for mapped in reversed(encoder.chain[:-1])]
    size = encoder.chain[-1].embedding_size
    shape = (2, size, *[1] * max(0, len(base.output.shape or ()) - 2))
    try:
        behind = _traced(
            nn.Sequential(nn.Flatten(), *maps), torch.zeros(shape, device=encoder.device), "base_embedding"
        )
        return join_graphs(base, behind, "base_embedding")
    except Exception as error:  # of many kinds
        raise UserError(
            f"{about}, which the map cannot be joined to ({type(error).__name__}: {error}): export the base model with "
            "other settings and fit the map to that, or use the run folder"
        ) from error


def worst_difference(encoder: Encoder, path: str | Path) -> float:
    """The largest difference between ONNX Runtime on `path` and PyTorch, over random images in batches of 1 and 3.

    Two differences count for each embedding: the largest of one number, relative to the embedding's length, and
    1 - cosine. NaN if an embedding has a length of 0 or is not finite.
    """
    network = OnnxNetwork(path, torch.device("cpu"))
    rng = np.random.default_rng(0)
    differences = []
    for batch in CHECKED_BATCHES:
        images = rng.integers(0, 256, (batch, encoder.image_size, encoder.image_size, 3), np.uint8)
        wanted = encoder(images).double().cpu().numpy()
        pixels = images[..., ::-1] if encoder.channel_order == "BGR" else images
        mean, std = (np.asarray(numbers, np.float32) for numbers in (encoder.mean, encoder.std))
        inputs = (pixels.astype(np.float32) - mean) / std
        got = network(torch.from_numpy(inputs.transpose(0, 3, 1, 2))).double().numpy()
        with np.errstate(all="ignore"):
            length = np.linalg.norm(wanted, axis=1)
            cosine = (got * wanted).sum(1) / (np.linalg.norm(got, axis=1) * length)
            differences += [(np.abs(got - wanted).max(1) / length).max(), (1 - cosine).max()]
    return float(np.max(differences))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's chatter (prints, warnings, log lines) off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
