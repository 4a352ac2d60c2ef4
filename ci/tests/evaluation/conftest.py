"""A tiny evaluation tree in IJB-C's layout and a model that needs no weights."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from core.images.alignment import REFERENCE_POINTS

SIZE = 24


@dataclass
class PixelModel:
    """A fixed random projection of the pixels; counts how many images it was shown."""

    seed: int = 0
    embedding_size: int = 16
    image_size: int = SIZE
    calls: int = 0
    fail_at: int = -1
    network: str = "pixels"
    mean: tuple = (127.5, 127.5, 127.5)
    std: tuple = (127.5, 127.5, 127.5)
    device: str = "cpu"
    base: None = None

    def __post_init__(self):
        self.name = f"pixels{self.seed}"
        self.fingerprint = f"{self.seed:064x}"
        generator = torch.Generator().manual_seed(self.seed)
        self.weight = torch.randn(self.image_size**2 * 3, self.embedding_size, generator=generator) / self.image_size

    @property
    def preprocessing(self):
        return f"{self.image_size} {self.mean} {self.std}"

    def __call__(self, images):
        self.calls += len(images)
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return (torch.as_tensor(images).float() / 127.5 - 1).reshape(len(images), -1) @ self.weight


def write_tree(parent: Path, subset: str = "IJBC", num_subjects: int = 12) -> Path:
    """Subjects in three thirds: in the first gallery, the second, neither; one gallery template, two for probes."""
    rng = np.random.default_rng(0)
    crops, meta = parent / subset / "loose_crop", parent / subset / "meta"
    crops.mkdir(parents=True)
    meta.mkdir()
    prefix, names = subset.lower(), {"IJBC": ("G1", "G2"), "IJBB": ("S1", "S2")}[subset]
    points, members, lists = [], [], {name: [] for name in (*names, "probe")}
    image = template = media = 0
    for subject in range(num_subjects):
        face = cv2.resize(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8), (SIZE, SIZE))
        for role in range(3):
            template += 1
            if role == 0 and subject % 3 < 2:
                lists[names[subject % 3]].append((template * 10, subject + 100))
            elif role:
                lists["probe"].append((template * 10, subject + 100))
            for _ in range(rng.integers(1, 4)):
                media += 1
                for _ in range(rng.integers(1, 4)):
                    image += 1
                    shift, scale = rng.integers(0, 9, 2), rng.uniform(1.0, 1.6)
                    canvas = rng.integers(0, 256, (60, 60, 3)).astype(np.uint8)
                    side = int(SIZE * scale)
                    noisy = np.clip(face + rng.normal(0, 70, face.shape), 0, 255).astype(np.uint8)
                    canvas[shift[1] : shift[1] + side, shift[0] : shift[0] + side] = cv2.resize(noisy, (side, side))
                    cv2.imwrite(str(crops / f"{image}.jpg"), canvas)
                    landmarks = REFERENCE_POINTS * (side / 112) + shift
                    numbers = " ".join(f"{value:.3f}" for value in landmarks.ravel())
                    points.append(f"{image}.jpg {numbers} {rng.uniform(0.2, 1):.3f}")
                    members.append(f"{image}.jpg {template * 10} {media}")
    pairs = [
        f"{10 * a} {10 * b} {int((a - 1) // 3 == (b - 1) // 3)}"
        for a in range(1, template + 1)
        for b in range(a + 1, template + 1)
    ]
    for name, lines in (("name_5pts_score", points), ("face_tid_mid", members), ("template_pair_label", pairs)):
        (meta / f"{prefix}_{name}.txt").write_text("\n".join(lines) + "\n")
    for name, rows in lists.items():
        file = f"{prefix}_1N_probe_mixed.csv" if name == "probe" else f"{prefix}_1N_gallery_{name}.csv"
        body = "".join(f"{t},{s},img/{t}.jpg\n" * 2 for t, s in rows)
        (meta / file).write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + body)
    return parent


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """See `one_thread`."""


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "data")


@pytest.fixture
def tree_writer():
    return write_tree


@pytest.fixture
def pixel_model():
    return PixelModel
