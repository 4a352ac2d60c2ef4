import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest

from core.errors import UserError
from core.evaluation.ijb_embeddings import AlignedImages, embed_images
from core.evaluation.ijb_meta import read_images
from core.images.alignment import REFERENCE_POINTS


@pytest.fixture
def images(tree):
    return read_images(tree / "IJBC", "IJBC")


def aligned_crops(images):
    return AlignedImages(images, 24).read(np.arange(len(images.names)))["image"]


def test_source_reads_the_aligned_crops_of_the_rows_asked_for(images):
    crops = aligned_crops(images)
    assert crops.shape == (len(images.names), 24, 24, 3) and crops.dtype == np.uint8
    assert np.array_equal(AlignedImages(images, 24).read(np.array([7, 0]))["image"], crops[[7, 0]])
    for row in (0, 7, len(crops) - 1):
        photo = cv2.cvtColor(cv2.imread(str(images.path(row))), cv2.COLOR_BGR2RGB)
        matrix, _ = cv2.estimateAffinePartial2D(images.landmarks[row], REFERENCE_POINTS * 24 / 112)
        expected = cv2.warpAffine(photo, matrix, (24, 24))
        assert np.abs(crops[row].astype(int) - expected).mean() < 1.5


def test_embeddings_are_those_of_image_and_mirrored_image(images, pixel_model, tmp_path):
    model = pixel_model()
    result = embed_images(model, images, batch_size=16, num_workers=0, cache=tmp_path / "cache")
    crops = aligned_crops(images)
    np.testing.assert_allclose(result.plain, model(crops), atol=1e-5)
    np.testing.assert_allclose(result.mirrored, model(crops[:, :, ::-1].copy()), atol=1e-5)
    assert result.plain.dtype == np.float32


def test_second_test_embeds_nothing_and_another_model_size_or_image_does(images, pixel_model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    first = embed_images(pixel_model(), images, num_workers=0, cache=cache)
    again = pixel_model()
    result = embed_images(again, images, num_workers=0, cache=cache)
    assert again.calls == 0 and "embeddings from the store" in caplog.text
    np.testing.assert_array_equal(result.plain, first.plain)
    for other in (pixel_model(seed=1), pixel_model(image_size=20), pixel_model(mean=(0.0, 0.0, 0.0))):
        embed_images(other, images, num_workers=0, cache=cache)
        assert other.calls == 2 * len(images.names)
    image = images.path(3)
    image.write_bytes(image.read_bytes() + b"\0")
    changed = pixel_model()
    embed_images(changed, replace(images), num_workers=0, cache=cache)
    assert changed.calls == 2 * len(images.names)


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no array"),
        lambda path: np.save(path, np.zeros((3, 16), np.float32)),
        cut,
    ],
    ids=["missing", "empty", "no array", "other shape", "cut short"],
)
def test_damaged_cache_is_reported_and_made_again(images, pixel_model, tmp_path, caplog, damage):
    cache = tmp_path / "cache"
    first = embed_images(pixel_model(), images, num_workers=0, cache=cache)
    wanted = np.array(first.mirrored)
    damage(next(cache.rglob("mirrored.npy")))
    again, after = pixel_model(), pixel_model()
    result = embed_images(again, images, num_workers=0, cache=cache)
    np.testing.assert_array_equal(result.mirrored, wanted)
    assert again.calls == 2 * len(images.names) and "is damaged" in caplog.text and str(cache) in caplog.text
    embed_images(after, images, num_workers=0, cache=cache)
    assert after.calls == 0


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "no image", "cut short"])
def test_undecodable_image_is_named_and_leaves_no_cache(images, pixel_model, tmp_path, num_workers, content):
    path = images.path(20)
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(UserError, match="loose_crop/21.jpg"):
        embed_images(pixel_model(), images, batch_size=8, num_workers=num_workers, cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_embeddings_that_are_not_finite_stop_the_test(images, pixel_model, tmp_path):
    model = pixel_model()
    model.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="pixels0 gives an embedding that is not finite for .*/1.jpg"):
        embed_images(model, images, num_workers=0, cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_killed_evaluation_goes_on_where_it_was(images, pixel_model, tmp_path, monkeypatch):
    monkeypatch.setattr("core.embeddings.extraction.BLOCK", 8)
    whole = embed_images(pixel_model(), images, batch_size=8, num_workers=0, cache=tmp_path / "whole")
    killed = pixel_model(fail_at=5 * 8)
    with pytest.raises(KeyboardInterrupt):
        embed_images(killed, images, batch_size=8, num_workers=0, cache=tmp_path / "cache")
    again = pixel_model()
    result = embed_images(again, images, batch_size=8, num_workers=0, cache=tmp_path / "cache")
    assert again.calls == 2 * (len(images.names) - 2 * 8)
    np.testing.assert_array_equal(result.plain, whole.plain)
    np.testing.assert_array_equal(result.mirrored, whole.mirrored)
