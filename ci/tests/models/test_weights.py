"""State dicts on disk: what is read, what is refused, and how a network is recognised by its weights."""

import pickle

import pytest
import torch

from core.backbones import build_backbone
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.models.encoder import load_encoder
from core.models.weights import build_with_weights, fingerprint, layout_of

TINY = {"width": 4, "depth": 1, "image_size": 32}


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return build_backbone("r18", 16, **TINY).state_dict()


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {f"module.{key}": value for key, value in w.items()},
        lambda w: {f"_orig_mod.module.{key}": value for key, value in w.items()},
        lambda w: {f"module._orig_mod.{key}": value for key, value in w.items()},
        lambda w: w | {"cls_fc.weight": torch.ones(5, 16), "cls_fc.bias": torch.ones(5)},
        lambda w: {f"module.{key}": value for key, value in (w | {"BCT_FC.weight": torch.ones(5, 16)}).items()},
        lambda w: {"epoch": 3, "state_dict_backbone": w, "state_dict_softmax_fc": {"weight": torch.ones(2)}},
        lambda w: {"state_dict": w, "lr": 0.1},
    ],
    ids=["plain", "module", "orig_mod.module", "module.orig_mod", "cls_fc", "BCT_FC", "arcface_torch", "state_dict"],
)
def test_wrapped_and_prefixed_weights_are_read_as_the_plain_state_dict(wrap, weights, tmp_path):
    found = read_state_dict(saved(wrap(weights), tmp_path / "w.pt"))
    assert found.keys() == weights.keys()
    assert fingerprint(found) == fingerprint(weights)


def test_format_before_pytorch_1_6_is_read(weights, tmp_path):
    path = saved(weights, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert fingerprint(read_state_dict(path)) == fingerprint(weights)


def test_only_the_classifiers_of_released_checkpoints_are_dropped(weights, tmp_path):
    extra = {"cls_fc2.weight": torch.ones(2), "head.weight": torch.ones(2)}
    found = read_state_dict(saved(weights | extra, tmp_path / "w.pt"))
    assert found.keys() - weights.keys() == extra.keys()
    with pytest.raises(UserError, match="cls_fc2.weight does not belong, head.weight does not belong; they look like"):
        load_encoder(tmp_path / "w.pt", "r18")


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    "make",
    [
        lambda path, w: path.write_bytes(pickle.dumps({"image": b"x"})),
        lambda path, w: path.write_bytes(pickle.dumps(Harmful())),
        lambda path, w: path.write_bytes(b""),
        lambda path, w: path.write_bytes(b"PK\x03\x04 no archive"),
        lambda path, w: path.write_bytes(saved(w, path).read_bytes()[:-500]),
        lambda path, w: saved({"a": 1}, path),
        lambda path, w: saved([torch.ones(1)], path),
        lambda path, w: saved({}, path),
        lambda path, w: saved(build_backbone("r18", 16, **TINY), path),
    ],
    ids=["pickle", "code", "empty", "bad zip", "truncated", "no tensors", "list", "nothing", "module"],
)
def test_file_without_weights_is_refused_by_name(make, weights, tmp_path, capfd):
    path = tmp_path / "w.pt"
    make(path, weights)
    with pytest.raises(UserError, match="w.pt"):
        read_state_dict(path)
    assert "executed" not in capfd.readouterr().out


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="not found: .*none.pt"):
        read_state_dict(tmp_path / "none.pt")


def test_fingerprint_depends_on_names_shapes_types_and_bytes_alone():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    assert fingerprint(base) == fingerprint(dict(reversed(base.items())))
    images = torch.randn(2, 3, 4, 4)
    assert fingerprint({"a": images}) == fingerprint({"a": images.to(memory_format=torch.channels_last)})
    others = [{**base, "a": base["a"].T}, {**base, "a": base["a"].int()}, {"c": base["a"], "b": base["b"]}]
    others.append({**base, "b": torch.tensor(2)})
    assert len({fingerprint(state) for state in [base, *others]}) == 5


@pytest.mark.parametrize(
    "name, options, expected_size",
    [
        ("r18", {"width": 8, "depth": (1, 2, 1, 1), "image_size": 48}, 48),
        ("r50", {"width": 2}, 112),
        ("r100", {"width": 4, "depth": 1, "image_size": 40}, 48),
        ("mbf", {"image_size": 96}, 96),
        ("mbf_large", {}, 112),
        ("vit_t", {}, 112),
        ("vit_s_dp005_mask_0", {"image_size": 40}, 40),
        ("vit_l", {"image_size": 32}, 32),
    ],
)
def test_sizes_and_options_are_read_from_the_weights(name, options, expected_size):
    with torch.device("meta"):
        state_dict = build_backbone(name, 24, **options).state_dict()
    layout = layout_of(state_dict, name, "w.pt")
    assert (layout.embedding_size, layout.image_size) == (24, expected_size)
    for key in options.keys() & {"width"}:
        assert layout.options[key] == options[key]


@pytest.mark.parametrize(
    "made_as, options, asked, message",
    [
        ("r50", {}, "r18", "layer1.2.bn1.weight does not belong.*and 286 more; they look like those of r50"),
        ("r18", {"width": 2}, "r50", "layer1.2.bn1.weight is missing, .*look like those of r18 .embedding size 24"),
        ("mbf", {}, "mbf_large", "look like those of mbf "),
        ("vit_t", {}, "vit_s", "look like those of vit_t or vit_t_dp005_mask0"),
        ("vit_t", {}, "r18", "conv1.weight is missing.*look like those of vit_t"),
    ],
)
def test_wrong_network_names_differences_and_the_network_that_fits(made_as, options, asked, message):
    with torch.device("meta"):
        state_dict = build_backbone(made_as, 24, **options).state_dict()
    with pytest.raises(UserError, match=f"weights in w.pt are not those of network {asked}: .*{message}"):
        layout_of(state_dict, asked, "w.pt")


def test_weights_of_an_unknown_network_list_the_known_ones():
    with pytest.raises(UserError, match="the known networks are r18"):
        layout_of({"encoder.weight": torch.ones(2)}, "r18", "w.pt")


def test_wrong_shape_is_reported_with_both_shapes(weights):
    with pytest.raises(UserError, match=r"fc.weight is \(16, 128\) in place of \(16, 288\); they look like"):
        build_with_weights(weights, "r18", 16, {**TINY, "image_size": 48}, "w.pt")


def test_old_weights_without_batch_counters_and_half_precision_load(weights):
    old = {key: value.half() for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    module = build_with_weights(old, "r18", 16, TINY, "w.pt")
    assert all(value.dtype == torch.float32 for key, value in module.state_dict().items() if key in old)
    assert module.bn1.num_batches_tracked == 0
