"""What foreign ONNX files are fed: embeddings equal ONNX Runtime's own on pixels that were prepared by hand."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx_graphs import SIDE, Graph, channels

from core.errors import UserError
from core.models.encoder import load_encoder

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
CAFFE = (103.939, 116.779, 123.68)
"""The means of blue, green and red that Caffe's networks subtract."""
FACE = "mean (127.5, 127.5, 127.5), std (127.5, 127.5, 127.5)"
RAW = "mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)"
UNIT = "mean (0.0, 0.0, 0.0), std (255.0, 255.0, 255.0)"
IMAGENET = "mean (123.675, 116.28, 103.53), std (58.395, 57.12, 57.375)"


def pixels(count=3, side=SIDE):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def nchw(images):
    return images.astype(np.float32).transpose(0, 3, 1, 2)


def by_runtime(path, fed):
    """ONNX Runtime's embeddings of what a person who knows the model would feed it."""
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(fed)})[0]


def loaded(path, caplog, **told):
    """The encoder and its log line."""
    with caplog.at_level(logging.INFO):
        encoder = load_encoder(path, **told)
    (record,) = caplog.records
    return encoder, record


def mxnet():
    return Graph().step("Sub", 127.5).step("Mul", 0.0078125)


def div_then_sub():
    return Graph().step("Div", [[[[127.5]]]], as_node=True).step("Identity").step("Sub", 1.0, as_node=True)


def add_of_constant_of_shape():
    graph = Graph()
    shape = graph.constant([1])
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [-127.5])
    graph.nodes += [helper.make_node("ConstantOfShape", [shape], ["shift"], value=value)]
    graph.nodes += [helper.make_node("Add", ["shift", "data"], ["shifted"])]
    graph.source = "shifted"
    return graph.step("Div", 128.0)


def cast_and_imagenet():
    graph = Graph().step("Cast", to=TensorProto.DOUBLE).step("Cast", to=TensorProto.FLOAT).step("Mul", 1 / 255)
    return graph.step("Sub", MEAN.reshape(3, 1, 1)).step("Div", STD.reshape(3, 1, 1))


def negated():
    return Graph().step("Sub", 127.5, first=True).step("Mul", -1 / 127.5)


def mean_image():
    image = np.random.default_rng(1).normal(120, 5, (3, SIDE, SIDE))
    return Graph().step("Sub", image).step("Mul", 0.017)


def batch_norm_of_pixels():
    statistics = [1, 1, 1], [0, 0, 0], [140, 118, 104], [3600, 3300, 3200]
    return Graph().step("BatchNormalization", *map(np.float32, statistics))


def only_division():
    return Graph().step("Div", 255.0)


def half_in_float16():
    graph = Graph().step("Cast", to=TensorProto.FLOAT16)
    graph.constants += [onnx.numpy_helper.from_array(np.float16(value), name) for value, name in ((127.5, "m"),)]
    graph.nodes += [helper.make_node("Sub", [graph.source, "m"], ["h0"]), helper.make_node("Div", ["h0", "m"], ["h1"])]
    graph.source = "h1"
    return graph.step("Cast", to=TensorProto.FLOAT)


@pytest.mark.parametrize(
    "graph",
    [
        mxnet,
        div_then_sub,
        add_of_constant_of_shape,
        cast_and_imagenet,
        negated,
        mean_image,
        batch_norm_of_pixels,
        only_division,
        half_in_float16,
    ],
)
def test_graph_that_normalises_pixels_gets_them_as_they_are(graph, tmp_path, caplog):
    path = graph().write(tmp_path / "m.onnx")
    encoder, record = loaded(path, caplog)
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, nchw(pixels())), rtol=1e-5)
    line = f"model m is fed {SIDE}x{SIDE} RGB, {RAW} (its graph normalises by itself)"
    assert (record.levelname, record.getMessage()) == ("INFO", line)


@pytest.mark.parametrize(
    "graph",
    [
        lambda: Graph().step("Sub", channels(*MEAN)).step("Div", channels(*STD)),
        lambda: Graph().step("Sub", channels(*MEAN), as_node=True),
        lambda: Graph().step("Mul", 2.0).step("Sub", 1.0),
        lambda: Graph().step("Add", -0.5).step("Mul", 2.0),
    ],
)
def test_graph_that_normalises_pixels_from_0_to_1_gets_those(graph, tmp_path, caplog):
    path = graph().write(tmp_path / "m.onnx")
    encoder, record = loaded(path, caplog)
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, nchw(pixels()) / 255), rtol=1e-4)
    assert record.levelname == "INFO" and f"RGB, {UNIT} (its graph" in record.getMessage()


def test_graph_that_subtracts_least_from_the_first_channel_gets_bgr(tmp_path, caplog):
    path = Graph().step("Sub", channels(*CAFFE)).write(tmp_path / "m.onnx")
    encoder, record = loaded(path, caplog)
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, nchw(pixels()[..., ::-1])), rtol=1e-4)
    assert f"BGR, {RAW} (its graph" in record.getMessage()


@pytest.mark.parametrize(
    "flip",
    [
        lambda graph: graph.step("Gather", [2, 1, 0], axis=1),
        lambda graph: graph.step("Slice", [-1], [-(2**31)], [1], [-1]),
    ],
)
def test_graph_that_turns_rgb_to_bgr_by_itself_gets_rgb(flip, tmp_path, caplog):
    path = flip(Graph()).step("Sub", channels(*CAFFE)).write(tmp_path / "m.onnx")
    encoder, record = loaded(path, caplog)
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, nchw(pixels())), rtol=1e-4)
    assert f"RGB, {RAW} (its graph" in record.getMessage()


def test_keras_layout_plain_and_with_a_normalisation_before_and_after_the_transpose(tmp_path, caplog):
    shape, permutation = ("N", SIDE, SIDE, 3), [0, 3, 1, 2]
    plain = Graph().step("Transpose", perm=permutation).write(tmp_path / "plain.onnx", shape)
    before = Graph().step("Sub", np.float32([127.5] * 3)).step("Div", 127.5).step("Transpose", perm=permutation)
    after = Graph().step("Transpose", perm=permutation).step("Sub", channels(127.5, 127.5, 127.5)).step("Div", 127.5)
    fed = pixels().astype(np.float32)
    encoder, record = loaded(plain, caplog)
    np.testing.assert_allclose(encoder(pixels()), by_runtime(plain, (fed - 127.5) / 127.5), rtol=1e-4)
    assert record.levelname == "WARNING" and FACE in record.getMessage()
    for number, graph in enumerate((before, after)):
        path = graph.write(tmp_path / f"{number}.onnx", shape)
        np.testing.assert_allclose(load_encoder(path)(pixels()), by_runtime(path, fed), rtol=1e-4)


@pytest.mark.parametrize("shape", [("N", 3, SIDE, SIDE), (1, SIDE, SIDE, 3)])
def test_input_of_type_uint8_gets_the_pixels(shape, tmp_path, caplog):
    graph = Graph().step("Cast", to=TensorProto.FLOAT)
    if shape[3] == 3:
        graph.step("Transpose", perm=[0, 3, 1, 2])
    path = graph.step("Div", 255.0).step("Sub", 0.5).write(tmp_path / "m.onnx", shape, TensorProto.UINT8)
    fed = pixels() if shape[3] == 3 else pixels().transpose(0, 3, 1, 2)
    wanted = np.concatenate([by_runtime(path, image[None]) for image in fed])
    encoder, record = loaded(path, caplog)
    np.testing.assert_allclose(encoder(pixels()), wanted, rtol=1e-4)
    assert record.levelname == "INFO" and f"{RAW} (its input is of type uint8)" in record.getMessage()
    np.testing.assert_allclose(load_encoder(path, channel_order="BGR")(pixels()[..., ::-1].copy()), wanted, rtol=1e-4)
    with pytest.raises(UserError, match="model m takes pixels of type uint8 as they are: leave out mean and std"):
        load_encoder(path, mean="face", std="face")


@pytest.mark.parametrize(
    "kind, shape, message",
    [
        (
            TensorProto.FLOAT16,
            ("N", 3, 8, 8),
            r"takes data tensor\(float16\) \['N', 3, 8, 8\]: only inputs of type float or",
        ),
        (TensorProto.FLOAT, ("N", 1, 8, 8), r"expected one input .*, got data tensor\(float\) \['N', 1, 8, 8\]"),
        (TensorProto.FLOAT, ("N", 8, 9, 3), "takes images of 8x9: only square images"),
    ],
)
def test_other_inputs_are_refused_by_name(kind, shape, message, tmp_path):
    graph = Graph().step("Cast", to=TensorProto.FLOAT)
    if shape[1] == 1:
        graph.step("Concat", *[], axis=1)
        graph.nodes[-1].input.extend([graph.nodes[0].output[0]] * 2)
    elif shape[3] == 3:
        graph.step("Transpose", perm=[0, 3, 1, 2])
    with pytest.raises(UserError, match=message):
        load_encoder(graph.write(tmp_path / "m.onnx", shape, kind))


@pytest.mark.parametrize(
    "graph, write, fed, reason",
    [
        (Graph, {}, FACE, "face networks: nothing in the file says so"),
        (lambda: Graph().step("Identity").step("Cast", to=1), {}, FACE, "face networks: nothing in the file says so"),
        (lambda: Graph().step("Mul", 1 / 128), {}, FACE, "face networks: its graph changes its input in a way"),
        (lambda: Graph().step("Clip", -1.0, 1.0), {}, FACE, "face networks: its graph changes its input in a way"),
        (Graph, {"stem": 7, "stride": 2}, IMAGENET, "imagenet networks: nothing in the file says so"),
        (Graph, {"shape": ("N", 3, 224, 224)}, IMAGENET, "imagenet networks: nothing in the file says so"),
    ],
)
def test_guess_is_a_warning_that_says_what_is_fed_and_names_the_options(graph, write, fed, reason, tmp_path, caplog):
    encoder, record = loaded(graph().write(tmp_path / "m.onnx", **write), caplog)
    line = record.getMessage()
    assert record.levelname == "WARNING" and "\n" not in line
    assert line.startswith(
        f"model m is fed {encoder.image_size}x{encoder.image_size} RGB, {fed} (a guess, the numbers of {reason}"
    )
    assert "--mean, --std and --channel-order" in line and "--mean-old" in line and "old_mean" in line
    path = tmp_path / "m.onnx"
    images = pixels(2, encoder.image_size)
    mean, std = np.float32(encoder.mean), np.float32(encoder.std)
    np.testing.assert_allclose(encoder(images), by_runtime(path, nchw((images - mean) / std)), rtol=1e-4)


def test_open_height_and_width_are_112_or_224_and_said(tmp_path, caplog):
    shape = ("N", 3, "height", "width")
    for stem, stride, side in ((1, 1, 112), (7, 2, 224)):
        caplog.clear()
        encoder = load_encoder(Graph().write(tmp_path / "m.onnx", shape, stem=stem, stride=stride))
        assert encoder.image_size == side
        assert f"leaves height and width open: it is fed images of {side} pixels" in caplog.messages[0]


@pytest.mark.parametrize(
    "props, wanted",
    [
        ({"mean": "[1, 2, 3]", "std": "[4, 5, 6]"}, ((1, 2, 3), (4, 5, 6), "RGB")),
        ({"mean": "127.5", "std": "128"}, ((127.5,) * 3, (128,) * 3, "RGB")),
        (
            {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"},
            ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "RGB"),
        ),
        (
            {"mean": "imagenet", "std": "imagenet", "channel_order": "bgr"},
            ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), "BGR"),
        ),
    ],
)
def test_metadata_decides(props, wanted, tmp_path, caplog):
    path = Graph().write(tmp_path / "m.onnx", **props)
    encoder, record = loaded(path, caplog)
    assert (encoder.mean, encoder.std, encoder.channel_order) == wanted
    assert record.levelname == "INFO" and "its metadata says so" in record.getMessage()
    images = pixels()[..., ::-1] if wanted[2] == "BGR" else pixels()
    fed = nchw((images - np.float32(wanted[0])) / np.float32(wanted[1]))
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, fed), rtol=1e-4)


def test_metadata_that_contradict_the_graph_are_obeyed_with_a_warning(tmp_path, caplog):
    encoder = load_encoder(mxnet().write(tmp_path / "m.onnx", mean="127.5", std="127.5"))
    assert encoder.mean == (127.5,) * 3
    assert (
        "metadata says mean (127.5, 127.5, 127.5)" in caplog.messages[0] and "but its graph normalises" in caplog.text
    )


def test_metadata_without_sense_are_refused_in_one_line(tmp_path):
    for props in ({"channel_order": "GRB"}, {"mean": "1", "std": "0"}, {"mean": "[1, 2]", "std": "1"}):
        with pytest.raises(UserError, match="m.onnx has metadata that make no sense: the ") as error:
            load_encoder(Graph().write(tmp_path / "m.onnx", **props))
        assert "\n" not in str(error.value)


def test_function_in_the_file_is_looked_into(tmp_path):
    path = Graph().step("Prepare").write(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].domain = "own"
    body = Graph("x").step("Sub", 127.5, as_node=True).step("Div", 127.5, as_node=True)
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Prepare", ["x"], [body.source], body.nodes, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    encoder = load_encoder(path)
    assert encoder.mean == (0.0,) * 3
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, nchw(pixels())), rtol=1e-4)


def test_weights_that_are_inputs_too_as_in_old_files(tmp_path):
    path = mxnet().write(tmp_path / "m.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version, model.opset_import[0].version = 3, 9
    onnx.save(model, path)
    encoder = load_encoder(path)
    assert encoder.mean == (0.0,) * 3
    np.testing.assert_allclose(encoder(pixels()), by_runtime(path, nchw(pixels())), rtol=1e-4)


def test_embedding_is_the_flat_output_and_one_of_one_pixel_is_flattened(tmp_path):
    path = Graph().write(tmp_path / "m.onnx")
    model, wanted = onnx.load(path), load_encoder(path)(pixels())
    pooled = helper.make_tensor_value_info(model.graph.node[-1].input[0], TensorProto.FLOAT, ["N", 5, 1, 1])
    flat = model.graph.output.pop()
    for outputs in ([pooled], [pooled, flat]):
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        onnx.save(model, path)
        assert torch.equal(load_encoder(path)(pixels()), wanted)


class Normalising(torch.nn.Module):
    """A network that takes RGB pixels, turns them to BGR, and normalises them itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(CAFFE)[:, None, None])
        self.convolution = torch.nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return self.convolution((x.flip(1) - self.mean) / 58.0).relu().mean((2, 3))


def test_module_that_torch_exported_with_its_normalisation(tmp_path, caplog):
    torch.manual_seed(0)
    module, path = Normalising().eval(), tmp_path / "m.onnx"
    with torch.no_grad():
        torch.onnx.export(
            module, (torch.zeros(2, 3, SIDE, SIDE),), path, dynamo=True, external_data=True, verbose=False
        )
        wanted = module(torch.from_numpy(nchw(pixels(2))))
    caplog.clear()
    encoder, record = loaded(path, caplog)
    torch.testing.assert_close(encoder(pixels(2)), wanted, rtol=1e-4, atol=1e-4)
    assert f"RGB, {RAW} (its graph" in record.getMessage()
