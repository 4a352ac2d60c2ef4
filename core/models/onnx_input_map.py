"""What an ONNX graph does to its input before the network proper: input -> scale * input + offset, by channel.

Many graphs normalise their input themselves, by Sub and Mul, by Div, by batch norm, after casting or transposing it.
All that lies before the first other layer is cut off and run on images of one colour, which gives the map.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.external_data_helper import load_external_data_for_model
from onnx.inliner import inline_local_functions

from core.models.onnx_model import OnnxNetwork

__all__ = ["InputMap", "find_input_map", "first_layers"]

logger = logging.getLogger(__name__)

SIMPLE = frozenset(
    "Add BatchNormalization Cast CastLike Clip Concat Div Gather Identity Mul Neg Resize Slice Split Squeeze Sub "
    "Transpose Unsqueeze Upsample".split()
)
"""Operators that normalise, reorder channels or change sizes, but are no layers."""
BRIGHT, DIM = 255.0, 51.0
"""Of the images that a graph is tried on."""
TOLERANCE = 1e-2
"""Of a map that is taken to be linear; a graph in float16 is not more exact."""


@dataclass(frozen=True)
class InputMap:
    """By channel of the graph's input, each float64 (3,)."""

    scale: np.ndarray
    offset: np.ndarray

    @property
    def changes_nothing(self) -> bool:
        """Whether the network proper gets what the graph is fed, up to the order of the channels."""
        return bool(np.allclose(self.scale, 1, rtol=1e-3) and np.allclose(self.offset, 0, atol=1e-3))


def first_layers(model: onnx.ModelProto) -> tuple[set[str], list[onnx.NodeProto]]:
    """What the network proper takes of the input, changed by `SIMPLE` operators alone, and the layers that take it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    reached = {value.name for value in model.graph.input if value.name not in constants}
    taken: set[str] = set()
    layers = []
    for node in model.graph.node:
        inputs = reached.intersection(node.input)
        if not inputs or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in SIMPLE:
            reached.update(node.output)
        else:
            taken |= inputs
            layers.append(node)
    return taken, layers


def find_input_map(path: Path, model: onnx.ModelProto, network: OnnxNetwork) -> InputMap | None:
    """The map of the graph `model`, which was read from `path`; None if it is another than `InputMap` can say."""
    try:
        if model.functions:
            model = inline_local_functions(model)
        taken, _ = first_layers(model)
        if len(taken) != 1:
            return None
        (name,) = taken
        if name == network.inputs[0].name:
            return InputMap(np.ones(3), np.zeros(3))
        return _fitted(_colour_function(_part_before(path, model, name), network))
    except Exception:  # the runtime has many kinds, and a graph that runs as a whole may not run in part
        logger.debug("the beginning of %s cannot be run", path, exc_info=True)
        return None


def _part_before(path: Path, model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The part of the graph that computes `name`, with the constants that it needs."""
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    inputs = [value for value in model.graph.input if value.name in needed]
    graph = helper.make_graph(nodes, "beginning", inputs, [onnx.ValueInfoProto(name=name)], constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    load_external_data_for_model(part, str(path.parent))
    return part


def _colour_function(part: onnx.ModelProto, network: OnnxNetwork) -> Callable[[np.ndarray], np.ndarray]:
    """From the colour of an image, (3,) as the graph's input has it, to the mean output by channel, float64 (3,)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = (network.fixed_batch or 1, 3, network.image_size, network.image_size)

    def run(colour: np.ndarray) -> np.ndarray:
        image = np.broadcast_to(colour.astype(np.float32)[:, None, None], shape)
        (output,) = session.run(None, {network.inputs[0].name: network.as_input(image)})
        output = np.asarray(output, np.float64)
        return output.mean((0, 2, 3) if output.shape[1] == 3 else (0, 1, 2))

    return run


def _fitted(run: Callable[[np.ndarray], np.ndarray]) -> InputMap | None:
    """The map of the function, if it is linear and keeps the channels apart."""
    colours = np.eye(3)
    black = run(np.zeros(3))
    full, part = (np.stack([run(value * colour) - black for colour in colours]) for value in (BRIGHT, DIM))
    allowed = TOLERANCE * np.abs(full).max()
    place = np.abs(full).argmax(1)  # of each input channel among the output's
    apart = np.where(np.arange(3) == place[:, None], 0, full)
    if len(set(place)) < 3 or np.abs(apart).max() > allowed or np.abs(part - full * DIM / BRIGHT).max() > allowed:
        return None
    return InputMap(full[range(3), place] / BRIGHT, black[place])
