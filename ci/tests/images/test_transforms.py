"""From uint8 batches to network input."""

import pytest
import torch

from core.errors import UserError
from core.images.transforms import (
    AUGMENTATIONS,
    NORMALIZATIONS,
    TrainTransform,
    affine,
    flip,
    light,
    noise,
    normalize,
    occlusion,
)


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_face_normalization_maps_0_and_255_to_minus_and_plus_1():
    pixels = torch.tensor([0, 255, 127], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 1, 3, 3)
    result = TrainTransform("face", ())(pixels)
    assert result.shape == (1, 3, 1, 3) and result.dtype == torch.float32
    assert torch.allclose(result[0, :, 0], torch.tensor([-1.0, 1.0, -0.5 / 127.5]).expand(3, 3))


def test_imagenet_normalization_works_by_channel_in_rgb_order():
    pixels = torch.tensor([[[[255, 0, 100]]]], dtype=torch.uint8)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (100 / 255 - 0.406) / 0.225]
    assert TrainTransform("imagenet", ())(pixels).flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_normalized_batch_is_laid_out_channels_last_and_leaves_the_input_alone(images):
    copy = images.clone()
    result = normalize(images, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert result.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, copy)
    assert torch.allclose(result[5, 2, 3, 4], (images[5, 3, 4, 2].float() - 3) / 6)


def test_flip_mirrors_about_half_of_the_images_each_as_a_whole(images):
    plain = normalize(images, (0.0,) * 3, (1.0,) * 3)
    torch.manual_seed(0)
    result = flip(plain)
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(result, plain)]
    kept = [torch.equal(new, old) for new, old in zip(result, plain)]
    assert all(a != b for a, b in zip(mirrored, kept))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (33, 3, 4, 113),
        (33, 3, 7, 10),
        (33, 1, 6, 5),
        (33, 2, 5, 1),
        (33, 4, 1, 7),
        (33, 3, 1, 1),
        (33, 5, 4, 6),
        (0, 3, 4, 4),
    ],
)
def test_flip_gives_the_bits_of_indexing_and_leaves_its_input_alone(dtype, channels_last, shape):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    torch.manual_seed(0)
    expected = images.clone()
    rows = (torch.rand(len(images), 1, 1, 1) < 0.5).flatten()
    expected[rows] = images[rows].flip(3)
    torch.manual_seed(0)
    found = flip(images)
    assert found.dtype == dtype and torch.equal(found, expected) and torch.equal(images, before)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_flip_mirrors_a_batch_that_is_a_view_of_a_larger_one(images):
    torch.manual_seed(3)
    expected = flip(images[:, 1:8, 2:].permute(0, 3, 1, 2).contiguous())
    torch.manual_seed(3)
    assert torch.equal(flip(images[:, 1:8, 2:].permute(0, 3, 1, 2)), expected)


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
@pytest.mark.parametrize("count", [0, 1, 17, 64])
def test_normalization_equals_the_plain_formula_bit_for_bit(images, count, channel_order):
    images = images[:count, :, :7]  # not contiguous, and not square
    for mean, std in NORMALIZATIONS.values():
        plain = images.flip(3) if channel_order == "BGR" else images
        plain = ((plain.float() - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
        assert torch.equal(normalize(images, mean, std, channel_order), plain)


@pytest.mark.parametrize("augmentations", [["flip"], ["flip", "noise"], ["noise", "flip"], ["light", "flip", "noise"]])
def test_a_batch_that_is_mirrored_as_bytes_equals_one_that_is_mirrored_as_numbers(images, augmentations):
    torch.manual_seed(5)
    found = TrainTransform("imagenet", augmentations)(images)
    torch.manual_seed(5)
    expected = normalize(images, *NORMALIZATIONS["imagenet"])
    for name in augmentations:
        if name == "flip":
            mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
            expected = torch.where(mirrored, expected.flip(3), expected)
        else:
            expected = AUGMENTATIONS[name](expected)
    assert torch.equal(found, expected)


def test_affine_of_no_strength_is_the_identity(images):
    plain = TrainTransform("face", ())(images)
    assert torch.allclose(affine(plain, 0.0, 0.0, 0.0, 0.0), plain, atol=1e-5)


def test_affine_shifts_by_fractions_of_half_the_side_and_differs_by_image():
    column = torch.zeros(8, 3, 20, 20)
    column[..., 10] = 1.0
    torch.manual_seed(1)
    centres = (affine(column, 0.0, 0.0, 0.0, 0.3) * torch.arange(20.0)).sum((1, 2, 3)) / 60
    assert (centres - 10).abs().max() <= 3 + 1e-4 and centres.std() > 0.5


def test_noise_has_a_strength_of_its_own_for_each_image():
    torch.manual_seed(0)
    deviations = noise(torch.zeros(200, 3, 16, 16), 0.2).flatten(1).std(1)
    assert deviations.max() < 0.22 and deviations.min() < 0.01 and abs(deviations.mean() - 0.1) < 0.02


def test_light_keeps_a_plane_a_plane_and_its_parts_within_their_bounds():
    torch.manual_seed(0)
    pictures = torch.stack([torch.zeros(200, 3, 8, 12), torch.ones(200, 3, 8, 12)])
    states = torch.get_rng_state()
    lit = []
    for picture in pictures:  # the same draws for both
        torch.set_rng_state(states)
        lit.append(light(picture, 0.5, 0.3, 0.4))
    gain = lit[1] - lit[0]
    assert torch.allclose(gain, gain[:, :1, :1, :1].expand_as(gain), atol=1e-6)
    assert 0.5 <= gain.min() < 0.55 and 0.95 < gain.max() <= 1 + 1e-6
    assert 0.25 < lit[0].mean((1, 2, 3)).abs().max() <= 0.3 + 1e-6
    down, across = lit[0][:, 0, -1, 0] - lit[0][:, 0, 0, 0], lit[0][:, 0, 0, -1] - lit[0][:, 0, 0, 0]
    steepness = torch.hypot(down, across)
    assert 0.37 < steepness.max() <= 0.4 + 1e-6 and steepness.min() < 0.05
    corner = lit[0][:, 0, 0, 0] + down + across
    assert torch.allclose(lit[0][:, 0, -1, -1], corner, atol=1e-6)


def test_occlusion_covers_one_grey_rectangle_in_a_fraction_of_the_images():
    torch.manual_seed(0)
    plain = torch.full((400, 3, 20, 40), 5.0)  # no grey that is drawn
    result = occlusion(plain, 0.25, (0.2, 0.5))
    changed = (result != 5.0).all(1)
    assert torch.equal(changed, (result != 5.0).any(1))
    hit = changed.flatten(1).any(1)
    assert 70 < hit.sum() < 130
    rows, columns = changed[hit].any(2), changed[hit].any(1)
    assert torch.equal(changed[hit], rows[:, :, None] & columns[:, None])
    for marked, side in ((rows, 20), (columns, 40)):
        first, last = marked.float().argmax(1), side - 1 - marked.flip(1).float().argmax(1)
        assert torch.equal(last - first + 1, marked.sum(1))  # without gaps
        assert 0.2 * side - 1 <= marked.sum(1).min() and marked.sum(1).max() <= 0.5 * side + 1
    grey = result[hit].flatten(1).min(1).values
    assert all(((image == 5.0) | (image == value)).all() for image, value in zip(result[hit], grey))
    assert grey.min() < -0.8 and grey.max() > 0.8 and grey.abs().max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_repeated_by_the_generator_state(images, name):
    transform = TrainTransform("face", (name,))
    state = torch.get_rng_state()
    first, second = transform(images), transform(images)
    torch.set_rng_state(state)
    assert torch.equal(transform(images), first) and not torch.equal(first, second)
    assert first.shape == (64, 3, 9, 9) and first.dtype == torch.float32


def test_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown augmentation 'mirror'.*'flip', 'affine', 'light', 'noise'"):
        TrainTransform("face", ("flip", "mirror"))
    with pytest.raises(UserError, match="unknown normalization 'none': choose one of .'face', 'imagenet'"):
        TrainTransform("none", ())
