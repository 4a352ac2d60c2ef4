import cv2
import numpy as np

from core.images.alignment import REFERENCE_POINTS, similarity_transforms, warp


def umeyama(source, target):
    """Umeyama 1991, equations 40 to 43, by singular values, for one set of points."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.ones(2)
    if np.linalg.det(covariance) < 0:
        sign[1] = -1
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / (source - source_mean).var(0).sum()
    return np.hstack([scale * rotation, (target_mean - scale * rotation @ source_mean)[:, None]])


def test_transforms_equal_umeyama_by_singular_values_also_for_mirrored_faces():
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 300, (20, 5, 2))
    landmarks[10:] = REFERENCE_POINTS * [-1, 1] * 2 + rng.normal(0, 5, (10, 5, 2)) + 200
    for size in (112, 40):
        expected = [umeyama(points, REFERENCE_POINTS * size / 112) for points in landmarks]
        np.testing.assert_allclose(similarity_transforms(landmarks, size), expected, atol=1e-8)


def test_landmarks_at_the_reference_points_leave_the_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    (transform,) = similarity_transforms(REFERENCE_POINTS[None] * 40 / 112, 40)
    np.testing.assert_array_equal(warp(image, transform, 40), image)


def test_turned_and_shrunk_face_comes_back_upright_and_outside_is_black():
    face = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8), (0, 0), 6)
    turn = cv2.getRotationMatrix2D((60, 50), 33, 0.8)
    photo = cv2.warpAffine(face, turn, (140, 140), borderValue=(255, 255, 255))
    landmarks = REFERENCE_POINTS @ turn[:, :2].T + turn[:, 2]
    (transform,) = similarity_transforms(landmarks[None], 112)
    crop = warp(photo, transform, 112)
    assert np.abs(crop[20:92, 20:92].astype(int) - face[20:92, 20:92]).mean() < 3
    (far_away,) = similarity_transforms(landmarks[None] + 1000, 112)
    assert not warp(photo, far_away, 112).any()
