"""From uint8 batches to network input."""

import pytest
import torch

from core.data.transforms import AUGMENTATIONS, TrainTransform, affine, flip, noise, normalize
from core.errors import UserError


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


def test_affine_of_no_strength_is_the_identity(images):
    plain = TrainTransform("face", ())(images)
    assert torch.allclose(affine(plain, 0.0, 0.0, 0.0, 0.0), plain, atol=1e-5)


def test_affine_shifts_by_shares_of_half_the_side_and_differs_by_image():
    column = torch.zeros(8, 3, 20, 20)
    column[..., 10] = 1.0
    torch.manual_seed(1)
    centres = (affine(column, 0.0, 0.0, 0.0, 0.3) * torch.arange(20.0)).sum((1, 2, 3)) / 60
    assert (centres - 10).abs().max() <= 3 + 1e-4 and centres.std() > 0.5


def test_noise_has_a_strength_of_its_own_for_each_image():
    torch.manual_seed(0)
    deviations = noise(torch.zeros(200, 3, 16, 16), 0.2).flatten(1).std(1)
    assert deviations.max() < 0.22 and deviations.min() < 0.01 and abs(deviations.mean() - 0.1) < 0.02


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_repeated_by_the_generator_state(images, name):
    transform = TrainTransform("face", (name,))
    state = torch.get_rng_state()
    first, second = transform(images), transform(images)
    torch.set_rng_state(state)
    assert torch.equal(transform(images), first) and not torch.equal(first, second)
    assert first.shape == (64, 3, 9, 9) and first.dtype == torch.float32


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(UserError, match="unknown augmentation 'mirror'.*'flip', 'affine', 'noise'"):
        TrainTransform("face", ("flip", "mirror"))
    with pytest.raises(UserError, match="unknown normalization 'none': choose one of .'face', 'imagenet'"):
        TrainTransform("none", ())
