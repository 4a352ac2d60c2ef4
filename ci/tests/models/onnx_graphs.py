"""Small foreign ONNX encoders, written with onnx.helper: what they do to their input, then a convolution, pooled."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 12


class Graph:
    """The nodes and constants of a graph that is being written; `step` appends an operator to its main line."""

    def __init__(self, source="data"):
        self.nodes, self.constants, self.source = [], [], source

    def step(self, kind, *values, first=False, as_node=False, **attributes):
        """An operator on the main line and `values`; `first`: these come first. `as_node`: constants as nodes."""
        names = [self.constant(value, as_node) for value in values]
        inputs = [*names, self.source] if first else [self.source, *names]
        self.source = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [self.source], **attributes))
        return self

    def constant(self, value, as_node=False):
        """The name of a constant: float32, or int64 for whole numbers."""
        array = np.asarray(value) if np.asarray(value).dtype == np.int64 else np.asarray(value, np.float32)
        name = f"c{len(self.nodes)}_{len(self.constants)}"
        if as_node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def write(self, path: Path, shape=("N", 3, SIDE, SIDE), kind=TensorProto.FLOAT, stem=1, stride=1, **props):
        """The file, with a convolution of `stem` x `stem`, ReLU, pooling, and `props` as metadata."""
        weight = np.random.default_rng(0).normal(0, 1, (5, 3, stem, stem)).astype(np.float32)
        self.step("Conv", weight, strides=[stride, stride], kernel_shape=[stem, stem]).step("Relu")
        self.step("GlobalAveragePool").step("Flatten")
        graph = helper.make_graph(
            self.nodes,
            "other",
            [helper.make_tensor_value_info("data", kind, shape)],
            [helper.make_tensor_value_info(self.source, TensorProto.FLOAT, [shape[0], 5])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if props:
            helper.set_model_props(model, props)
        onnx.save(model, path)
        return path


def channels(*values):
    """Three numbers as a constant that fits (B, 3, H, W)."""
    return np.float32(values).reshape(1, 3, 1, 1)
