"""ONNX files that ask for any amount of memory or time, or promise more than they hold: a line each."""

import numpy as np
import onnx
import pytest
from limited_child import line_of
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import SIDE, Graph

from core.errors import UserError
from core.models import onnx_model
from core.models.encoder import load_encoder

node = helper.make_node


def int64(name, value):
    return numpy_helper.from_array(np.array(value, np.int64), name)


def float32(name, value):
    return numpy_helper.from_array(np.array(value, np.float32), name)


def write(path, nodes, constants=(), functions=(), shape=("N", 3, SIDE, SIDE)):
    """A model that flattens what its nodes make of `data`, called `out`."""
    graph = helper.make_graph(
        [*nodes, node("Flatten", ["out"], ["embedding"])], "hostile",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)], list(constants),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions)), path)
    return path


def loop(kind="Loop"):
    scalar = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9))]
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [node("Identity", ["c"], ["c2"]), node("Identity", ["v"], ["v2"])], "body", [*scalar, value],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return node("Loop", ["trips", "true", "data"], ["out"], body=body)


def doubling(name, calls, levels):
    """Functions of which each calls the next one twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = [node(calls, ["x"], ["t"], domain="own"), node(calls, ["t"], ["y"], domain="own")]
    if levels == 0:
        inner = [node("Relu", ["x"], ["y"])]
    return helper.make_function("own", name, ["x"], ["y"], inner, opsets)


def shape_then(nodes, constants):
    return ([node("Shape", ["data"], ["sh"]), node("Mul", ["sh", "k"], ["s"]), *nodes], constants)


TRIPS = [int64("trips", 2**62), numpy_helper.from_array(np.array(True), "true")]
MEMORY = "takes more than the memory of encoders of its size for one image of 12x12"
CASES = {
    "constant": ([node("ConstantOfShape", ["s"], ["c"]), node("ReduceSum", ["c"], ["r"], keepdims=0),
                  node("Add", ["data", "r"], ["out"])], [int64("s", [10**11])], MEMORY),
    "by the shape": (*shape_then([node("ConstantOfShape", ["s"], ["c"]), node("ReduceMax", ["c"], ["r"], keepdims=0),
                                  node("Add", ["data", "r"], ["out"])], [int64("k", [10**8, 1, 1, 1])]), MEMORY),
    "resize": ([node("Resize", ["data", "", "s"], ["out"])], [float32("s", [1, 1, 1e5, 1e5])], MEMORY),
    "expand": ([node("Expand", ["data", "s"], ["out"])], [int64("s", [10**8, 3, SIDE, SIDE])], MEMORY),
    "tile": ([node("Tile", ["data", "s"], ["out"])], [int64("s", [10**7, 1, 1, 1])], "Tile output tensor would"),
    "doubled": ([node("Concat", [f"x{i}" if i else "data"] * 2, [f"x{i + 1}" if i < 39 else "out"], axis=0)
                 for i in range(40)], [], MEMORY),
    "beyond 64 bits": ([node("Tile", ["data", "s"], ["out"])], [int64("s", [2**62, 2**62, 1, 1])], "cannot"),
    "range": ([node("Range", ["a", "b", "c"], ["r"]), node("ReduceSum", ["r"], ["t"], keepdims=0),
               node("Add", ["data", "t"], ["out"])],
              [float32("a", 0), float32("b", 1e12), float32("c", 1)], "takes more|cannot"),
    "loop": ([loop()], TRIPS, "has a Loop operator, which no encoder needs and which may never end"),
    "loop in a branch": (
        [node("If", ["true"], ["out"], then_branch=helper.make_graph(
            [loop()], "then", [], [helper.make_tensor_value_info("out", 1, None)]),
            else_branch=helper.make_graph([node("Identity", ["data"], ["out"])], "else", [],
                                          [helper.make_tensor_value_info("out", 1, None)]))],
        TRIPS, "has a Loop operator"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_graphs_that_take_any_amount_are_a_line(tmp_path, name):
    nodes, constants, message = CASES[name]
    path = write(tmp_path / "m.onnx", nodes, constants)
    said = line_of(lambda: check(path), extra=3 << 30)
    assert any(part in said for part in message.split("|")) and str(path) in said, said


def check(path):
    """The encoder, with its errors in one line as `run_program` writes them."""
    try:
        load_encoder(path)
    except UserError as error:
        raise UserError(" ".join(str(error).split())) from error


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([doubling(f"f{level}", f"f{level - 1}", level) for level in range(40)], "more than 1000000 operators"),
        ([doubling("f39", "f38", 1), doubling("f38", "f39", 1)], "its function f39 calls itself"),
    ],
)
def test_functions_that_call_each_other_without_end_are_a_line(tmp_path, functions, message):
    path = write(tmp_path / "m.onnx", [node("f39", ["data"], ["out"], domain="own")], functions=functions)
    assert message in line_of(lambda: check(path))


def test_a_run_is_stopped_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "MOST_SECONDS", 0.5)
    chain = ["data", *(f"x{i}" for i in range(4_000)), "out"]
    nodes = [node("Tile", ["data", "s"], ["x0"])]
    nodes += [node("Erf", [a], [b]) for a, b in zip(chain[1:-1], chain[2:])]
    path = write(tmp_path / "m.onnx", nodes, [int64("s", [1000, 1, 1, 1])])
    said = line_of(lambda: check(path))
    assert "takes more than 0.5 seconds of a processor for one image of 12x12" in said


@pytest.mark.parametrize(
    ("shape", "message"),
    [((10**6, 3, SIDE, SIDE), "takes 1000000 images of 12x12 at once"),
     ((1, 3, 10**6, 10**6), "takes 1 images of 1000000"),
     ((2**62, 3, 2**62, 2**62), "images of|cannot"), ((0, 3, SIDE, SIDE), "takes batches of 0 images"),
     ((1, 3, 0, 0), "for images with pixels")],
)  # fmt: skip
def test_absurd_inputs_are_a_line(tmp_path, shape, message):
    path = write(tmp_path / "m.onnx", [node("Identity", ["data"], ["out"])], shape=shape)
    said = line_of(lambda: check(path))
    assert any(part in said for part in message.split("|")), said


@pytest.mark.parametrize("dims", [[10**12], [2**62, 2**62], [4, -1], [3, 999]])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_constants_that_promise_more_than_they_hold_are_a_line(tmp_path, dims, sparse):
    nodes = [node("ReduceSum", ["w"], ["r"], keepdims=0), node("Add", ["data", "r"], ["out"])]
    dense = TensorProto(name="w", dims=dims, data_type=1, raw_data=bytes(16))
    path = write(tmp_path / "m.onnx", nodes, [] if sparse else [dense])
    if sparse:
        model = onnx.load(path)
        whole = model.graph.sparse_initializer.add(dims=dims)
        whole.values.CopyFrom(float32("w", [1, 2]))
        whole.indices.CopyFrom(int64("i", [1, 10**11]))
        onnx.save(model, path)
    assert str(path) in line_of(lambda: check(path), extra=3 << 30)


@pytest.mark.parametrize("text", [b"batch", b"data"], ids=["batch", "input"])
def test_names_that_are_no_text_are_a_line(tmp_path, text):
    path = write(tmp_path / "m.onnx", [node("Identity", ["data"], ["out"])], shape=("batch", 3, SIDE, SIDE))
    path.write_bytes(path.read_bytes().replace(text, text[:1] + b"\x8b" + text[2:]))
    with pytest.raises(UserError, match=r"ONNX Runtime cannot load .*m\.onnx: "):
        check(path)


def test_a_model_that_runs_on_one_image_alone_is_a_line(tmp_path):
    path = write(tmp_path / "m.onnx", [node("Reshape", ["data", "s"], ["out"])], [int64("s", [1, 3, SIDE, SIDE])])
    encoder = load_encoder(path)
    with pytest.raises(
        UserError, match=r"(?s)cannot run .*m\.onnx on 2 images at once: .*; set a smaller batch, or export"
    ):
        encoder(np.zeros((2, SIDE, SIDE, 3), np.uint8))


def test_honest_models_are_read_as_before(tmp_path):
    path = Graph().step("Sub", 127.5).step("Mul", 1 / 127.5).write(tmp_path / "m.onnx")
    encoder = load_encoder(path)
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (expected,) = session.run(None, {"data": images.transpose(0, 3, 1, 2).astype(np.float32)})
    np.testing.assert_array_equal(encoder(images).numpy(), expected)
