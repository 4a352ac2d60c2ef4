import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from landmark_trees import write_image, write_revisited_tree

from core.errors import UserError
from core.evaluation.descriptors import Whitening, describe_images, expand_queries, image_sides
from core.evaluation.retrieval_images import ResizedImages, RetrievalImages, read_image_list
from core.evaluation.revisited_files import read_revisited


@dataclass
class PoolingModel:
    """Mean and largest value of each colour, and the mean of a corner's: any image side; counts the images shown."""

    any_size: bool = True
    image_size: int = 16
    embedding_size: int = 9
    name: str = "pooling"
    network: str = "pooling"
    fingerprint: str = "0" * 64
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    device: str = "cpu"
    base: None = None
    calls: int = 0

    @property
    def preprocessing(self):
        return f"{self.image_size} {self.mean} {self.std}"

    def __call__(self, images):
        self.calls += len(images)
        images = torch.as_tensor(images).float() / 255
        parts = images.mean((1, 2)), images.amax((1, 2)), images[:, :4, :4].mean((1, 2))
        return torch.cat(parts, 1) - 0.4


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def test(tmp_path):
    return read_revisited(write_revisited_tree(tmp_path / "roxford5k"), "roxford5k")


def test_source_reads_cropped_images_resized_to_each_side(test):
    source = ResizedImages(test.queries, [32, 20])
    batch = source.read(np.arange(4))
    assert {name: images.shape for name, images in batch.items()} == {
        "image0": (4, 32, 32, 3),
        "image1": (4, 20, 20, 3),
    }
    assert np.array_equal(source.read(np.array([2, 0]))["image1"], batch["image1"][[2, 0]])
    for query, crop in enumerate(batch["image0"]):
        photo = cv2.cvtColor(cv2.imread(str(test.queries.path(query))), cv2.COLOR_BGR2RGB)
        left, top = (int(round(value)) for value in test.queries.boxes[query][:2])
        np.testing.assert_allclose(crop.astype(int), photo[top : top + 32, left : left + 32], atol=2)


def test_box_is_rounded_to_pixels_and_ends_at_the_edge_of_the_image(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:15, 10:20] = 255
    write_image(tmp_path / "a.jpg", image)
    images = RetrievalImages(tmp_path, ["a.jpg"], tmp_path / "list", np.array([[10.4, 4.6, 19.6, 15.4]]))
    assert images.read(0).shape == (10, 10, 3) and images.read(0).mean() > 250
    assert images.cropped(np.array([[-5, 10.0, 99, 99]])).read(0).shape == (10, 30, 3)
    assert images.cropped(None).read(0).shape == (20, 30, 3)
    with pytest.raises(UserError, match="a.jpg in .*list lies outside its image of 30x20"):
        images.cropped(np.array([[40.0, 0, 50, 10]])).read(0)


def test_images_of_any_shape_become_squares(tmp_path):
    write_image(tmp_path / "a.jpg", np.full((40, 10, 3), 77, np.uint8))
    batch = ResizedImages(RetrievalImages(tmp_path, ["a.jpg"], tmp_path), [24]).read(np.array([0]))["image0"]
    assert batch.shape == (1, 24, 24, 3) and abs(batch.mean() - 77) < 2


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image"])
def test_undecodable_image_is_named_and_leaves_no_cache(test, tmp_path, num_workers, content):
    test.database.path(7).write_bytes(content)
    with pytest.raises(UserError, match="cannot be decoded: .*database_007.jpg"):
        describe_images(PoolingModel(), test.database, [16], 4, num_workers, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_missing_image_is_named_before_anything_is_embedded(test, tmp_path):
    test.database.path(20).unlink()
    model = PoolingModel()
    with pytest.raises(UserError, match="image not found: .*database_020.jpg, which .*gnd_roxford5k.pkl lists"):
        describe_images(model, test.database, [16], num_workers=0, cache=tmp_path / "cache")
    assert model.calls == 0


def test_list_of_images_has_a_line_an_image(tmp_path):
    for text in (b"a/b.jpg\n\nc d.jpg\n", b"\xef\xbb\xbfa/b.jpg\r\nc d.jpg\r\n \r\n", b"a/b.jpg \n\tc d.jpg"):
        (tmp_path / "list.txt").write_bytes(text)
        assert read_image_list(tmp_path / "list.txt", Path("/root"), "list").names == ["a/b.jpg", "c d.jpg"]
    with pytest.raises(UserError, match="list of distractors not found: .*none.txt"):
        read_image_list(tmp_path / "none.txt", tmp_path, "list of distractors")
    (tmp_path / "latin.txt").write_bytes("Zürich.jpg\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt is not UTF-8 .*give a list of distractors in UTF-8"):
        read_image_list(tmp_path / "latin.txt", tmp_path, "list of distractors")


def test_descriptor_is_the_normalised_mean_of_the_normalised_embeddings_of_all_scales(test, tmp_path):
    model = PoolingModel()
    sides = image_sides(model, None, (1.0, 0.7071, 1.4142))
    assert sides == [16, 11, 23]
    found = describe_images(model, test.database, sides, 4, 0, tmp_path)
    expected = 0
    for side in sides:
        images = ResizedImages(test.database, [side]).read(np.arange(len(test.database)))["image0"]
        expected = expected + unit(model(images).numpy())
    np.testing.assert_allclose(found, unit(expected), atol=1e-6)
    one = describe_images(model, test.database, sides[:1], 4, 0, tmp_path)
    assert np.abs(found - one).max() > 1e-3


def test_second_test_embeds_nothing_and_other_sides_boxes_or_files_do(test, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = describe_images(PoolingModel(), test.queries, [16], num_workers=0, cache=tmp_path)
    again = PoolingModel()
    np.testing.assert_array_equal(describe_images(again, test.queries, [16], num_workers=0, cache=tmp_path), first)
    assert again.calls == 0 and "embeddings from the store" in caplog.text
    for images, sides in ((test.queries, [20]), (test.queries, [16, 16]), (test.queries.cropped(None), [16])):
        model = PoolingModel()
        describe_images(model, images, sides, num_workers=0, cache=tmp_path)
        assert model.calls == 4 * len(sides)
    path = test.queries.path(0)
    path.write_bytes(path.read_bytes() + b"\0")
    model = PoolingModel()
    describe_images(model, test.queries.cropped(test.queries.boxes), [16], num_workers=0, cache=tmp_path)
    assert model.calls == 4


def test_embeddings_that_are_not_finite_stop_the_test(test, tmp_path):
    class Broken(PoolingModel):
        def __call__(self, images):
            return super().__call__(images) * float("nan")

    with pytest.raises(UserError, match="pooling gives an embedding that is not finite for .*jpg/query_0.jpg"):
        describe_images(Broken(), test.queries, [16], num_workers=0, cache=tmp_path)


def test_network_of_one_image_size_takes_no_other():
    fixed = PoolingModel(any_size=False)
    assert image_sides(fixed) == image_sides(fixed, 16) == [16]
    with pytest.raises(UserError, match="takes only images of 16 pixels, not 16, 23"):
        image_sides(fixed, None, (1.0, 1.4142))
    with pytest.raises(UserError, match="pixels, not 32"):
        image_sides(fixed, 32)
    assert image_sides(PoolingModel(), 32, (1.0, 0.5)) == [32, 16]


def test_whitened_gallery_has_mean_zero_and_equal_variances_before_it_is_normalised(monkeypatch):
    rng = np.random.default_rng(0)
    gallery = unit(rng.standard_normal((500, 6)) * [5, 3, 2, 1, 0.5, 0.1] + 1).astype(np.float32)
    monkeypatch.setattr("core.evaluation.descriptors.BLOCK", 64)
    whiten = Whitening(gallery)
    plain = (gallery.astype(np.float64) - gallery.mean(0, dtype=np.float64)) @ whiten.projection
    np.testing.assert_allclose(plain.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(plain.T, bias=True), np.eye(plain.shape[1]), atol=1e-6)
    np.testing.assert_allclose(whiten(gallery), unit(plain), atol=1e-5)
    assert whiten(gallery).dtype == np.float32


def test_whitening_leaves_out_directions_without_variance():
    rng = np.random.default_rng(0)
    gallery = unit(rng.standard_normal((5, 32))).astype(np.float32)
    assert Whitening(gallery)(gallery).shape == (5, 4)
    with pytest.raises(UserError, match="all the same"):
        Whitening(np.repeat(gallery[:1], 5, axis=0))


def test_query_expansion_adds_results_by_the_power_of_their_scores():
    gallery = np.eye(3, dtype=np.float32)
    queries = np.array([[0.8, 0.6, 0.0]], dtype=np.float32)
    scores, rows = np.array([[0.8, 0.6, -0.5]], np.float32), np.array([[0, 1, 2]])
    expected = unit(np.array([[0.8 + 0.8**3, 0.6 + 0.6**3, 0.0]]))
    np.testing.assert_allclose(expand_queries(queries, gallery, scores, rows), expected, atol=1e-6)
    np.testing.assert_allclose(expand_queries(queries, gallery, scores, rows, 0.0), unit(queries + 1), atol=1e-6)
