"""Files of weights that promise more than they hold, or hold what no network computes with: a line each."""

import io
import itertools
import json
import pickle
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from limited_child import line_of

from core.backbones import build_backbone
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.heads.class_weights import read_class_weights
from core.models.encoder import load_encoder
from core.models.weights import build_with_weights

NETWORK = build_backbone("r18", 16, width=4, depth=1, image_size=32)
OPTIONS = {"width": 4, "depth": 1, "image_size": 32}


def weights(**changed):
    """The state dict of a small network, but for some tensors."""
    return {name: changed.get(name.replace(".", "_"), tensor) for name, tensor in NETWORK.state_dict().items()}


def build(state_dict, path):
    torch.save(state_dict, path)
    return build_with_weights(read_state_dict(path), "r18", 16, OPTIONS, path)


class Rebuilt:
    """Pickled as a tensor with a shape, strides and an offset of one's own, on a storage of `count` numbers."""

    def __init__(self, size, stride, offset=0, count=4):
        self.arguments = torch.zeros(count).storage(), offset, size, stride, False, OrderedDict()

    def __reduce_ex__(self, protocol):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((10**12,), (1,), 0), ((10**6, 10**6), (0, 0), 0), ((3, 3), (1, 1), 0), ((4,), (1,), 10**12),
     ((2**62, 4), (0, 0), 0), ((10**9,), (0,), 0), ((4,), (2**60,), 0), ((4,), (1,), -1), ((-4,), (1,), 0),
     ((1,) * 100_000, (1,) * 100_000, 0)],
)  # fmt: skip
def test_shapes_strides_and_offsets_beyond_the_memory(tmp_path, size, stride, offset, new_format):
    path = tmp_path / "w.pt"
    torch.save(
        {"state_dict": {"fc.weight": Rebuilt(size, stride, offset)}}, path, _use_new_zipfile_serialization=new_format
    )
    said = line_of(lambda: build(read_state_dict(path), tmp_path / "again.pt"), extra=1 << 29)
    assert said.startswith((f"cannot read weights from {path}: it is damaged (", f"the weights in {tmp_path}/again.pt"))


def rezipped(source, target, change=lambda name, data: data, method=zipfile.ZIP_STORED):
    """A copy of an archive of torch.save with other records."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", method) as copy:
        for record in archive.infolist():
            copy.writestr(record.filename, change(record.filename, archive.read(record)))
    return target


@pytest.fixture
def saved(tmp_path):
    torch.save(weights(), tmp_path / "good.pt")
    return tmp_path / "good.pt"


def test_compressed_records_are_refused_before_they_are_unpacked(tmp_path, saved):
    bomb = rezipped(saved, tmp_path / "w.pt", lambda name, data: bytes(1 << 30) if name.endswith("/0") else data,
                    zipfile.ZIP_DEFLATED)  # fmt: skip
    assert bomb.stat().st_size < 1 << 22
    said = line_of(lambda: read_state_dict(bomb), extra=1 << 28)
    assert "its records are compressed, which torch.save does not do" in said


@pytest.mark.parametrize("kept", [0, 1, -4])
def test_a_record_of_another_size_than_its_tensor_is_refused(tmp_path, saved, kept):
    short = rezipped(saved, tmp_path / "w.pt", lambda name, data: data[:kept] if name.endswith("/data/0") else data)
    with pytest.raises(UserError, match="w.pt: it is damaged .*; get it again"):
        read_state_dict(short)


def test_a_record_that_lies_in_others_is_refused(tmp_path, saved):
    data = bytearray(rezipped(saved, tmp_path / "w.pt").read_bytes())
    for place in [i for i in range(len(data)) if data.startswith(b"PK\x01\x02", i)]:
        data[place + 20 : place + 28] = (1 << 20).to_bytes(4, "little") * 2  # both sizes in the directory
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(UserError, match="w.pt: it is damaged .ValueError: its records are larger than the file"):
        read_state_dict(tmp_path / "w.pt")


def test_a_record_of_two_sizes_takes_no_memory(tmp_path, saved):
    data = bytearray(rezipped(saved, tmp_path / "w.pt").read_bytes())
    for place in [i for i in range(len(data)) if data.startswith(b"PK\x01\x02", i)]:
        data[place + 20 : place + 24] = (1 << 31).to_bytes(4, "little")  # the size in the archive alone
    (tmp_path / "w.pt").write_bytes(data)
    said = line_of(lambda: read_state_dict(tmp_path / "w.pt"), extra=1 << 28)
    assert "its records are compressed, which torch.save does not do" in said


def test_endless_descriptions_in_safetensors_are_a_line(tmp_path):
    header = json.dumps({"a": [[1]] * 10**6}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="w.safetensors: it is damaged .*more than 4 MiB of descriptions"):
        read_state_dict(tmp_path / "w.safetensors")


def test_endless_names_in_safetensors_are_a_line(tmp_path):
    safetensors.torch.save_file({"w" * 2000: torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="w.safetensors: it is damaged .*a name of more than 1000 letters"):
        read_state_dict(tmp_path / "w.safetensors")


def shared(levels=6, width=60):
    """Lists in which one list is shared again and again, over a tensor."""
    level = [torch.zeros(1)]
    for _ in range(levels):
        level = [level] * width
    return level


def deep(levels=100_000):
    return b"\x80\x02}" + b")" + b"\x85" * levels + b"Ns."


PICKLES = {
    "deep key": deep(),
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "long string": b"\x80\x02X\xff\xff\xff\xff.",
    "nothing": b"",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "sets": b"\x80\x02" + b"\x8f" * (1 << 25) + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_would_take_the_process_down_are_a_line(tmp_path, saved, name):
    path = rezipped(saved, tmp_path / "w.pt", lambda record, data: PICKLES[name] if record.endswith("pkl") else data)
    said = line_of(lambda: read_state_dict(path), extra=1 << 28)
    assert said.startswith(f"cannot read weights from {path}: it ")
    if name == "sets":  # in the old format they are counted one by one, which takes its time
        return
    old = tmp_path / "old.pt"
    torch.save(weights(), old, _use_new_zipfile_serialization=False)
    content = old.read_bytes()
    start = pickle_end(content, 3)
    old.write_bytes(content[:start] + PICKLES[name])
    assert line_of(lambda: read_state_dict(old), extra=1 << 28).startswith(f"cannot read weights from {old}: it ")


def pickle_end(data, count):
    stream = io.BytesIO(data)
    for _ in range(count):
        pickle.load(stream)
    return stream.tell()


def test_containers_that_are_shared_again_and_again_end(tmp_path):
    torch.save({"x": shared(), "state_dict": weights()}, tmp_path / "w.pt")
    assert "more than 100000 tensors" in line_of(lambda: read_state_dict(tmp_path / "w.pt"))


BAD_NUMBERS = {
    "complex": ({"fc_weight": torch.zeros(16, 128, dtype=torch.complex64)}, "holds complex weights .fc.weight."),
    "whole": ({"fc_weight": torch.zeros(16, 128, dtype=torch.int8)}, "fc.weight in .* is int8, not real numbers"),
    "truth": ({"fc_bias": torch.zeros(16, dtype=torch.bool)}, "fc.bias in .* is bool, not real numbers"),
    "sparse": ({"fc_weight": torch.zeros(16, 128).to_sparse()}, "holds sparse weights .fc.weight."),
    "csr": ({"fc_weight": torch.eye(16, 128).to_sparse_csr()}, "holds sparse weights .fc.weight."),
    "meta": ({"fc_weight": torch.empty(16, 128, device="meta")}, "holds weights? ?without|without their numbers"),
    "nan": ({"fc_weight": torch.full((16, 128), torch.nan)}, "are not all finite .fc.weight.: the training diverged"),
    "one infinity": ({"bn1_bias": torch.tensor([0, 0, torch.inf, 0])}, "are not all finite .bn1.bias."),
    "variance": ({"bn2_running_var": torch.full((32,), -1.0)}, "a variance in .* is negative .bn2.running_var."),
    "infinite variance": ({"bn2_running_var": torch.full((32,), torch.inf)}, "are not all finite .bn2.running_var."),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, name):
    changed, message = BAD_NUMBERS[name]
    with pytest.raises(UserError, match=message) as caught:
        build(weights(**changed), tmp_path / "w.pt")
    assert "\n" not in str(caught.value) and str(tmp_path / "w.pt") in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_real_weights_of_other_types_are_converted_and_it_is_said(tmp_path, kind, caplog):
    caplog.set_level("INFO")
    other = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in weights().items()}
    built = build(other, tmp_path / "w.pt")
    assert f"w.pt: its weights, {str(kind).removeprefix('torch.')}, are read as float32" in caplog.text
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, other[name].to(tensor.dtype)), name
    caplog.clear()
    build(weights(), tmp_path / "w.pt")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(torch.zeros(3, 16, dtype=torch.int64), "is not a classifier: its weights are torch.int64"),
     (torch.zeros(3, 16, dtype=torch.complex64), "holds complex weights"),
     (torch.full((3, 16), torch.nan), "are not all finite")],
)  # fmt: skip
def test_class_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, tensor, message):
    torch.save({"weight": tensor}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=message):
        read_class_weights(tmp_path / "c.pt", 3, 16).tensors()


ABSURD = {"embedding_size": 10**9, "width": 10**9, "image_size": 10**9, "depth": 10**9}


@pytest.mark.parametrize(("network", "name"), [
    *itertools.product(["r18"], ABSURD),
    *itertools.product(["mbf", "vit_t", "resnet18"], ["embedding_size", "image_size"]),
])  # fmt: skip
@pytest.mark.parametrize("value", [10**9, 10**18, 10**30])
def test_absurd_options_are_refused_before_memory_is_taken(network, name, value):
    said = line_of(lambda: build_backbone(network, **{name: value}), extra=1 << 28)
    assert said.startswith(f"network {network} ") or said.startswith(f"{name} must be at most ")


def test_an_absurd_size_in_a_run_s_config_is_a_line(tmp_path, saved):
    run = tmp_path / "run"
    run.mkdir()
    saved.rename(run / "model.pt")
    for options in ('"embedding_size": 1000000000', '"embedding_size": 16, "network_options": {"depth": 1000000000}'):
        (run / "config.json").write_text(f'{{"network": "r18", "image_size": 32, {options}}}')
        assert line_of(lambda: load_encoder(run), extra=1 << 28)


def test_no_random_number_is_drawn_to_see_how_large_a_network_is():
    torch.manual_seed(0)
    one = build_backbone("mbf", 8, image_size=16).state_dict()
    after = torch.rand(3)
    torch.manual_seed(0)
    from core.backbones.mobilefacenet import NETWORKS

    other = NETWORKS["mbf"](8, image_size=16).state_dict()
    assert torch.equal(after, torch.rand(3)) and all(torch.equal(one[name], other[name]) for name in one)
