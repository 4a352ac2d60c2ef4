"""Against facts recorded from InsightFace's arcface_torch (commit 7fadd420c235): layouts, sizes, and embeddings.

The embeddings are of weights and images made by a formula (below), computed with the reference code on the CPU.
"""

import hashlib
import zlib

import numpy as np
import pytest
import torch

from core.backbones import build_backbone, list_backbones

# name: start of sha256 over the sorted "key shape" lines, number of parameters (embedding size 512)
LAYOUTS = {
    "r18": ("8a1772fbc5b63d10", 24025600),
    "r34": ("99eee08adc531ca7", 34139328),
    "r50": ("8b10e3d3ada4f984", 43590848),
    "r100": ("ad0e1bc1440bb2bd", 65156160),
    "r200": ("7ebf19f5cb859cbe", 118833920),
    "r2060": ("f8b2ffac5698964c", 1122301120),
    "mbf": ("d328258b96e45895", 2059520),
    "mbf_large": ("c82e5b82b1ab2cff", 6314880),
    "vit_t": ("b32f8d11098e2aea", 19137792),
    "vit_t_dp005_mask0": ("b32f8d11098e2aea", 19137792),
    "vit_s": ("69411c7bb9728c14", 76023296),
    "vit_s_dp005_mask_0": ("69411c7bb9728c14", 76023296),
    "vit_b": ("1c5d2785de396427", 113833472),
    "vit_b_dp005_mask_005": ("1c5d2785de396427", 113833472),
    "vit_l": ("08a1db87412b9068", 255684352),
    "vit_l_dp005_mask_005": ("08a1db87412b9068", 255684352),
    "vit_h": ("1ec58b790a968ad1", 756393984),
}
# name: first three numbers of the two embeddings, lengths of the two embeddings
EMBEDDINGS = {
    "r18": ([1.10416, 0.7907502, 0.1551847, 1.249065, 2.643955, -0.2777258], [32.1684, 30.76999]),
    "r50": ([21.24155, -13.35069, -7.359599, 29.20628, -13.90002, -15.5539], [265.3005, 277.9525]),
    "mbf": ([0.4962216, -0.6784224, 0.1959593, 0.5762639, -0.8747922, 0.1903924], [15.51371, 15.67227]),
    "mbf_large": ([-0.1390074, -0.4325866, 1.691283, 1.035978, -0.4535532, 0.3473966], [46.00085, 44.24218]),
    "vit_t": ([-0.06307962, 0.04295499, 0.0745019, 0.1199407, -0.1798473, 0.1098711], [14.1298, 13.1865]),
}


def formula_weights(module):
    state = {}
    for key, tensor in module.state_dict().items():
        random = np.random.RandomState(zlib.crc32(key.encode()))
        uniform = torch.from_numpy(random.uniform(size=tuple(tensor.shape))).float()
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith(("running_mean", "bias")):
            state[key] = 0.4 * uniform - 0.2
        elif key.endswith("running_var") or tensor.ndim == 1:
            state[key] = 0.4 + 0.6 * uniform
        elif key in ("pos_embed", "mask_token"):
            state[key] = 2 * uniform - 1
        else:
            state[key] = (2 * uniform - 1) * (3 / tensor[0].numel()) ** 0.5
    return state


def test_every_network_for_faces_has_a_recorded_layout():
    assert sorted(LAYOUTS) == sorted(name for name in list_backbones() if not name.startswith("resnet"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dict_keys_and_shapes_are_the_reference_ones(name):
    with torch.device("meta"):
        module = build_backbone(name)
    lines = "".join(f"{key} {tuple(tensor.shape)}\n" for key, tensor in sorted(module.state_dict().items()))
    found = hashlib.sha256(lines.encode()).hexdigest()[:16], sum(p.numel() for p in module.parameters())
    assert found == LAYOUTS[name]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_of_formula_weights_are_the_reference_ones(name):
    with torch.device("meta"):
        module = build_backbone(name).eval()
    module.load_state_dict(formula_weights(module), strict=True, assign=True)
    images = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (2, 3, 112, 112))).float()
    with torch.no_grad():
        embeddings = module(images)
    numbers, lengths = EMBEDDINGS[name]
    # float32 sums in another order: 1e-5 of the embedding's length
    torch.testing.assert_close(embeddings[:, :3].flatten(), torch.tensor(numbers), rtol=0, atol=1e-5 * lengths[0])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.tensor(lengths), rtol=1e-5, atol=0)


def test_initial_weights_have_the_reference_spread():
    iresnet = build_backbone("r18", 8, width=8, image_size=16)
    assert iresnet.layer4[1].conv1.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert (iresnet.features.weight == 1).all() and not iresnet.features.weight.requires_grad
    mobile = build_backbone("mbf", 8, image_size=16)
    assert mobile.conv_sep.layers[0].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert mobile.features.layers[2].weight.std().item() == pytest.approx((2 / 8) ** 0.5, rel=0.05)
    vit = build_backbone("vit_t", 8, image_size=18)
    assert vit.blocks[3].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert (vit.blocks[3].mlp.fc1.bias == 0).all()
