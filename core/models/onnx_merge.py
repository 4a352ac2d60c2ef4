"""A foreign ONNX encoder and the maps behind it as one ONNX graph."""

import onnx
from onnx import compose, version_converter

from core.models.onnx_model import OnnxNetwork

__all__ = ["join_graphs"]

BASE = "base/"
"""Before all names of the first graph but that of its input."""


def join_graphs(base: OnnxNetwork, behind: onnx.ModelProto, behind_input: str) -> onnx.ModelProto:
    """The model in the file of `base`, its embedding fed to `behind`, which keeps the names of its outputs.

    The older operators of the two are converted to the newer set. ONNX's own errors are passed on.
    """
    first = onnx.load_model(base.path)
    newest = max(_opset(first), _opset(behind))
    first, second = (
        model if _opset(model) == newest else version_converter.convert_version(model, newest)
        for model in (first, behind)
    )
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    first = compose.add_prefix(first, BASE, rename_inputs=False)
    first.ClearField("metadata_props")
    joined = compose.merge_models(
        first,
        second,
        [(BASE + base.output.name, behind_input)],
        inputs=[base.inputs[0].name],
        outputs=[output.name for output in second.graph.output],
    )
    onnx.checker.check_model(joined)
    return joined


def _opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
