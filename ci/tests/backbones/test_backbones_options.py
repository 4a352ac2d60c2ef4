"""Sizes, options, precision and training behaviour of the networks."""

import pytest
import torch

from core.backbones import build_backbone, iresnet, list_backbones, vit
from core.errors import UserError

SMALL = {"r18": {"width": 8, "depth": 1}, "mbf": {}, "vit_t": {}}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("image_size", [33, 40])
def test_network_follows_the_image_size(name, image_size):
    module = build_backbone(name, 24, image_size=image_size, **SMALL[name]).eval()
    with torch.no_grad():
        assert module(torch.randn(2, 3, image_size, image_size)).shape == (2, 24)


@pytest.mark.parametrize("image_size, cells", [(1, 1), (16, 1), (17, 2), (40, 3), (48, 3), (112, 7), (113, 8)])
def test_iresnet_head_has_one_input_for_each_cell(image_size, cells):
    module = build_backbone("r18", 4, width=2, depth=1, image_size=image_size).eval()
    assert module.fc.in_features == 8 * 2 * cells**2
    module(torch.randn(1, 3, image_size, image_size))


def test_iresnet_width_and_depth_set_channels_and_blocks():
    module = build_backbone("r50", 4, width=4, depth=[1, 2, 3, 1], image_size=32)
    stages = [module.layer1, module.layer2, module.layer3, module.layer4]
    assert [len(stage) for stage in stages] == [1, 2, 3, 1]
    assert [stage[0].conv2.out_channels for stage in stages] == [4, 8, 16, 32]


def test_iresnet_dropout_acts_in_training_only():
    module = build_backbone("r18", 4, width=4, depth=1, image_size=16, dropout=0.9)
    images = torch.randn(8, 3, 16, 16)
    module.eval()
    assert torch.equal(module(images), module(images))
    module.train()
    assert not torch.equal(module(images), module(images))


@pytest.mark.parametrize("name", SMALL)
def test_embeddings_are_float32_under_autocast_and_close_to_full_precision(name):
    module = build_backbone(name, 16, image_size=32, **SMALL[name]).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        full = module(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = module(images)
    assert mixed.dtype == torch.float32
    assert torch.cosine_similarity(full, mixed).min() > 0.99
    assert not torch.equal(full, mixed)


@pytest.mark.parametrize("name", ["r18", "mbf", "vit_t", "vit_t_dp005_mask0"])
def test_every_trainable_parameter_gets_a_gradient(name):
    module = build_backbone(name, 16, image_size=32, **SMALL.get(name, {})).train()
    module(torch.randn(8, 3, 32, 32)).square().mean().backward()
    assert [key for key, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name, kept", [("vit_t", 129), ("vit_b_dp005_mask_005", 136), ("vit_t_dp005_mask0", 144)])
def test_vit_masks_the_share_of_patches_in_the_name_of_its_variant(name, kept):
    variant = vit.VARIANTS[name]
    module = vit.VisionTransformer(8, variant=vit.Variant(8, 2, 0.1, variant.mask_ratio))
    lengths = []
    module.blocks[0].register_forward_pre_hook(lambda block, inputs: lengths.append(inputs[0].shape[1]))
    module.train()(torch.randn(2, 3, 112, 112))
    module.eval()(torch.randn(2, 3, 112, 112))
    assert lengths == [kept, 144]


def test_vit_puts_unmasked_patches_back_in_their_places():
    module = vit.VisionTransformer(8, image_size=27, variant=vit.Variant(8, 2, 0.0, 0.3))
    for block in module.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.mlp.fc2.weight)
    seen = []
    module.feature.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0].unflatten(1, (9, 8))))
    images = torch.randn(4, 3, 27, 27)
    module.train()(images)
    module.eval()(images)
    masked = (seen[0] == module.mask_token).all(2)
    assert masked.sum(1).tolist() == [3] * 4
    torch.testing.assert_close(seen[0][~masked], seen[1][~masked])


def test_vit_recomputation_gives_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        module = vit.VisionTransformer(8, image_size=27, variant=vit.Variant(16, 3, 0.5, 0.2, recompute)).train()
        module(torch.randn(4, 3, 27, 27)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert torch.equal(*gradients)


def test_iresnet_recomputation_gives_the_same_embeddings_and_gradients():
    found = []
    for segments in ((1, 1, 1, 1), (1, 2, 3, 1)):
        torch.manual_seed(1)
        module = iresnet.IResNet(8, width=4, depth=(1, 3, 4, 1), image_size=16, segments=segments).train()
        embeddings = module(torch.randn(4, 3, 16, 16))
        embeddings.square().sum().backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.requires_grad]
        found.append(torch.cat([embeddings.flatten(), *gradients]))
    assert torch.equal(*found)


def test_r2060_recomputes_its_two_long_stages():
    module = iresnet.NETWORKS["r2060"](8, width=2, depth=(1, 30, 2, 1), image_size=16)
    assert module.segments == (1, 20, 2, 1)
    assert iresnet.NETWORKS["r200"](8, width=2, depth=1, image_size=16).segments == (1, 1, 1, 1)


def test_stochastic_depth_drops_the_branch_of_whole_samples_and_scales_the_others():
    block = vit.Block(8, 0.25).train()
    for parameter in block.mlp.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 8).expand(4000, -1, -1)
    branch, found = block.attn(block.norm1(x)), block(x) - x
    kept = found.abs().amax((1, 2)) > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(found[kept], branch[kept] / 0.75, rtol=1e-4, atol=1e-5)  # x is added and subtracted


def test_unknown_network_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UserError, match="unknown network 'vit_ss'.*did you mean vit_s.*r18, r34, .*vit_h"):
        build_backbone("vit_ss")
    assert {"r18", "r200", "mbf_large", "vit_l"} <= set(list_backbones())


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mbf", {"width": 8}, "mbf has no option 'width'.*image_size"),
        ("r18", {"widht": 8}, "no option 'widht'.*image_size, width, depth, dropout"),
        ("r18", {"width": 0}, "width must be a whole number of at least 1, got 0"),
        ("r18", {"depth": (1, 2)}, "depth must be one number of blocks or four"),
        ("r18", {"depth": (1, 2, 0, 1)}, r"depth\[2\] must be"),
        ("r18", {"depth": 1.5}, "depth must be"),
        ("r18", {"dropout": 1}, "dropout must be in"),
        ("vit_t", {"image_size": 8}, "image_size must be at least 9"),
        ("mbf", {"image_size": "112"}, "image_size must be a whole number"),
        ("mbf", {"embedding_size": -1}, "embedding_size must be"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build_backbone(name, **options)
