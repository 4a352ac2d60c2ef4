"""Maps as ONNX files: base and map in one, also behind foreign ONNX files; what cannot be joined is one line."""

from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import Graph, channels
from tiny import noise, write_map_run, write_run_folder
from torch import nn

import core.models.export
from core.errors import UserError
from core.models.encoder import load_encoder
from core.models.export import export_onnx
from core.models.map_run import BaseModel
from core.models.maps import Map, Space
from core.models.maps.modules import FORWARD_NETWORKS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Run folders old (8 numbers) and new (12), and maps between them."""
    folder = tmp_path_factory.mktemp("models")
    old, new = write_run_folder(folder / "old", 0, 8, 112), write_run_folder(folder / "new", 1, 12, 32)
    write_map_run(folder / "gallery", old, new, "old_to_new", "mlp")
    write_map_run(folder / "twice", folder / "gallery", old, "new_to_old", "low_rank")
    return folder


def images(encoder, count=3):
    return noise(np.random.default_rng(2), count, encoder.image_size)


def require_same(encoder, path):
    """The file gives the encoder's embeddings, and says who they are of; returns the file's encoder."""
    loaded, wanted = load_encoder(path), encoder(images(encoder)).numpy()
    np.testing.assert_allclose(
        loaded(images(encoder)).numpy(), wanted, atol=1e-5 * np.linalg.norm(wanted, axis=1).max()
    )
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["network"] == encoder.network == loaded.network
    assert metadata["fingerprint"] == encoder.fingerprint and metadata["embedding_size"] == str(encoder.embedding_size)
    assert metadata.get("old_model_fingerprint") == encoder.old_model_fingerprint == loaded.old_model_fingerprint
    return loaded


def test_base_and_maps_are_one_file_that_insightface_loads(models, tmp_path):
    encoder = load_encoder(models / "twice")
    assert export_onnx(encoder, tmp_path / "map.onnx") < 1e-5
    require_same(encoder, tmp_path / "map.onnx")
    model = onnx.load(tmp_path / "map.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "embedding"]
    model_zoo = pytest.importorskip("insightface.model_zoo", reason="the dev extra is not installed")
    foreign = model_zoo.get_model(str(tmp_path / "map.onnx"), providers=["CPUExecutionProvider"])
    found = foreign.get_feat([np.ascontiguousarray(image[..., ::-1]) for image in images(encoder)])
    np.testing.assert_allclose(found, encoder(images(encoder)), atol=1e-5)


def own_export(folder, tmp_path):
    export_onnx(load_encoder(folder / "new"), tmp_path / "base.onnx")


def normalising_graph(folder, tmp_path):
    graph = Graph().step("Sub", channels(110, 120, 130)).step("Div", channels(60, 60, 60))
    graph.write(tmp_path / "base.onnx", ("N", 3, 32, 32))


def fixed_batch_and_old_operators(folder, tmp_path):
    Graph().write(tmp_path / "base.onnx", (1, 3, 32, 32), stem=3, mean="127.5", std="128.0")
    model = onnx.load(tmp_path / "base.onnx")
    model.opset_import[0].version = 9
    onnx.save(model, tmp_path / "base.onnx")


def two_outputs_of_pixels(folder, tmp_path):
    """Embeddings (B, 6, 1, 1) beside an output that is not used, of weights in another file."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(6, 3, 1, 1)).astype(np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["data", "weight"], ["map"]),
        helper.make_node("Relu", ["map"], ["rectified"]),
        helper.make_node("GlobalAveragePool", ["rectified"], ["embedding"]),
    ]
    outputs = [("map", ["N", 6, 32, 32]), ("embedding", ["N", 6, 1, 1])]
    graph = helper.make_graph(
        nodes, "base", [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, {"channel_order": "BGR", "mean": "127.5", "std": "127.5"})
    onnx.save(model, tmp_path / "base.onnx", save_as_external_data=True, location="base.data", size_threshold=0)


@pytest.mark.parametrize(("write", "kind"), [
    (own_export, "ridge"), (normalising_graph, "mlp"), (fixed_batch_and_old_operators, "low_rank"),
    (two_outputs_of_pixels, "procrustes"),
])  # fmt: skip
def test_a_map_is_joined_to_the_graph_of_a_foreign_base(models, tmp_path, write, kind):
    write(models, tmp_path)
    run = write_map_run(tmp_path / "map", tmp_path / "base.onnx", models / "old", kind=kind)
    if kind == "mlp":
        run = write_map_run(tmp_path / "second", run, models / "new", "old_to_new")
    encoder, out = load_encoder(run), tmp_path / "out"
    out.mkdir()
    assert export_onnx(encoder, out / "map.onnx") < 1e-5
    assert require_same(encoder, out / "map.onnx").preprocessing == encoder.preprocessing
    assert [path.name for path in out.iterdir()] == ["map.onnx"]


@pytest.mark.parametrize("kind", ["fct", "fastfill", "lambda_orthogonality"])
def test_maps_that_are_trained_are_exported_too(models, tmp_path, kind):
    old, new = (load_encoder(models / name) for name in ("old", "new"))
    if kind == "lambda_orthogonality":
        module, options = nn.Linear(8, 12), {}
    else:
        module, options = FORWARD_NETWORKS[kind](8, 12, 16, 0), {"hidden": 16, "side_size": 0}
        for number, norm in enumerate(each for each in module.modules() if isinstance(each, nn.BatchNorm1d)):
            norm.running_mean.copy_(
                0.1 * torch.randn(norm.num_features, generator=torch.Generator().manual_seed(number))
            )
    spaces = [Space(each.embedding_size, each.name, each.fingerprint) for each in (old, new)]
    base = asdict(BaseModel(BaseModel.stored_path(models / "old"), old.fingerprint))
    Map(kind, *spaces, module.eval().requires_grad_(False), 80, options).save(
        tmp_path / "map", {"base": base, "direction": "old_to_new"}
    )
    encoder = load_encoder(tmp_path / "map")
    assert export_onnx(encoder, tmp_path / "map.onnx") < 1e-5
    require_same(encoder, tmp_path / "map.onnx")


@pytest.mark.parametrize(
    ("shape", "kind"), [(("N", 32, 32, 3), TensorProto.FLOAT), (("N", 3, 32, 32), TensorProto.UINT8)]
)
def test_a_base_with_another_input_is_one_line(models, tmp_path, shape, kind):
    graph = Graph()
    if kind == TensorProto.UINT8:
        graph.step("Cast", to=TensorProto.FLOAT)
    else:
        graph.step("Transpose", perm=[0, 3, 1, 2])
    graph.write(tmp_path / "base.onnx", shape, kind)
    run = write_map_run(tmp_path / "map", tmp_path / "base.onnx", models / "old")
    with pytest.raises(
        UserError, match=r"^the base model of base\+ridge is the ONNX file .*base.onnx, whose input is ten"
    ):
        export_onnx(load_encoder(run), tmp_path / "map.onnx")
    assert not (tmp_path / "map.onnx").exists()


def test_what_onnx_cannot_join_is_one_line(models, tmp_path, monkeypatch):
    Graph().write(tmp_path / "base.onnx")
    run = write_map_run(tmp_path / "map", tmp_path / "base.onnx", models / "old")
    monkeypatch.setattr(core.models.export, "join_graphs", lambda *_: {}["opset"])
    with pytest.raises(
        UserError, match=r"base.onnx, which the map cannot be joined to \(KeyError: 'opset'\): export the"
    ):
        export_onnx(load_encoder(run), tmp_path / "map.onnx")
    assert not (tmp_path / "map.onnx").exists()
