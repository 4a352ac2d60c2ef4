import pickle

import cv2
import numpy as np
import pytest
from sklearn.model_selection import KFold

from core.errors import UserError
from core.evaluation.verification import fold_accuracies, read_verification_set, verification_accuracy


def naive_accuracies(embeddings, same):
    """One pair, one threshold, one fold at a time."""
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    distances = [((units[2 * i] - units[2 * i + 1]) ** 2).sum() for i in range(len(same))]
    accuracies = []
    for train, test in KFold(10, shuffle=False).split(distances):
        best, best_right = 0.0, -1
        for threshold in np.arange(0, 4, 0.01):
            right = sum((distances[i] < threshold) == same[i] for i in train)
            if right > best_right:
                best, best_right = threshold, right
        accuracies.append(np.mean([(distances[i] < best) == same[i] for i in test]))
    return accuracies


@pytest.mark.parametrize("num_pairs", [10, 47])
def test_fold_accuracies_equal_a_loop_over_pairs_and_thresholds(num_pairs):
    rng = np.random.default_rng(num_pairs)
    same = rng.random(num_pairs) < 0.5
    embeddings = rng.standard_normal((2 * num_pairs, 4))
    embeddings[1::2][same] = embeddings[0::2][same] + rng.standard_normal((same.sum(), 4))
    np.testing.assert_allclose(fold_accuracies(embeddings, same), naive_accuracies(embeddings, same))


def test_pairs_of_one_kind_and_collapsed_embeddings_are_counted():
    embeddings = np.random.default_rng(0).standard_normal((40, 3))
    assert fold_accuracies(embeddings, np.zeros(20, bool)).tolist() == [1] * 10
    assert fold_accuracies(np.ones((40, 3)), np.arange(20) % 2 == 0).tolist() == [0.5] * 10


def write_bin(path, num_pairs=20, size=16, protocol=2):
    rng = np.random.default_rng(0)
    same = [i % 2 == 0 for i in range(num_pairs)]
    images = []
    for is_same in same:
        first = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        images += [first, first if is_same else rng.integers(0, 256, (size, size, 3), dtype=np.uint8)]
    encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
    path.write_bytes(pickle.dumps((encoded, same), protocol))
    return images, same


@pytest.mark.parametrize("protocol", [2, 4])
def test_accuracy_of_a_bin_file_with_images_shown_as_rgb_and_mirrored(tmp_path, protocol):
    images, _ = write_bin(tmp_path / "toy.bin", protocol=protocol)
    seen = []

    def encoder(batch):
        seen.append(batch.numpy())
        return batch.reshape(len(batch), -1).float() - 127.5

    result = verification_accuracy(encoder, tmp_path / "toy.bin", batch_size=16)
    assert result.accuracy == 1.0 and result.std == 0.0 and result.folds.shape == (10,)
    np.testing.assert_array_equal(np.concatenate(seen[0::2]), np.stack(images))
    np.testing.assert_array_equal(np.concatenate(seen[1::2]), np.stack(images)[:, :, ::-1])


def test_images_are_resized_to_the_encoders_size(tmp_path):
    write_bin(tmp_path / "toy.bin", size=20)
    shapes = set()

    def encoder(batch):
        shapes.add(tuple(batch.shape[1:]))
        return batch.reshape(len(batch), -1).float() - 127.5

    assert verification_accuracy(encoder, tmp_path / "toy.bin", image_size=10).accuracy == 1.0
    assert shapes == {(10, 10, 3)}


def test_files_that_are_no_verification_set_are_named(tmp_path):
    path = tmp_path / "bad.bin"
    for content in ({"a": 1}, ([b"x"] * 20, [True] * 9), (["text"] * 20, [True] * 10), ([b"x"] * 20, [[True]] * 10)):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="bad.bin"):
            read_verification_set(path)
    path.write_bytes(pickle.dumps(([b"no image"] * 20, [True] * 10)))
    with pytest.raises(UserError, match="image 0 cannot be decoded"):
        verification_accuracy(lambda batch: batch, path)
