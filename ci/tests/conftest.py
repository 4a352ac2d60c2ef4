"""Tiny data and settings that several rooms' tests share."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from core.data.recordio import RecordWriter

ROOT = Path(__file__).resolve().parents[2]


def write_records(prefix: Path, labels: list[int], image_size: int = 16, seed: int = 0) -> Path:
    """Records in InsightFace's layout: one noisy image a label, alike within a class."""
    rng = np.random.default_rng(seed)
    prototypes = rng.integers(0, 256, (max(labels) + 1, image_size, image_size, 3))
    with RecordWriter(str(prefix)) as writer:
        writer.write(0, (float(len(labels) + 1), float(max(labels) + 1)), b"")
        for index, label in enumerate(labels, 1):
            image = np.clip(prototypes[label] + rng.normal(0, 20, prototypes[label].shape), 0, 255).astype(np.uint8)
            writer.write(index, (float(label), 0.0), simplejpeg.encode_jpeg(image, quality=95))
    return prefix


@pytest.fixture(scope="session")
def tiny_records(tmp_path_factory) -> Path:
    """Prefix of records with 72 images of 6 classes, 16x16."""
    return write_records(tmp_path_factory.mktemp("records") / "train", sorted(list(range(6)) * 12))


@pytest.fixture(scope="session")
def tiny_settings() -> list[str]:
    """Overrides that make a training of seconds: a narrow one-block IResNet, two epochs of four steps."""
    return [
        "network=r18", "network_options.width=4", "network_options.depth=1", "embedding_size=8", "batch_size=16",
        "num_epoch=2", "lr=0.02", "num_workers=0", "device=cpu", "frequent=2", "margin_scale=16",
    ]  # fmt: skip
