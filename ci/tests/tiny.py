"""Data and models so small that a test of the whole way takes a second."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import nn

from core.backbones import build_backbone
from core.data.recordio import RecordWriter
from core.models.encoder import Encoder, load_encoder
from core.models.map_run import BaseModel, joined_fingerprint
from core.models.maps import Space, fit_map
from core.models.weights import fingerprint

FACE = (127.5, 127.5, 127.5)


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


class CountingProjection(nn.Module):
    """A fixed random projection of the pixels that counts the images it is shown and can fail at one of its calls."""

    def __init__(self, image_size: int, embedding_size: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(3 * image_size**2, embedding_size, generator=generator))
        self.images = self.calls = self.fail_at = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.images += len(images)
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return images.flatten(1) @ self.weight


def projection_encoder(seed: int = 0, image_size: int = 16, embedding_size: int = 8) -> Encoder:
    """An encoder around `CountingProjection`."""
    module = CountingProjection(image_size, embedding_size, seed)
    return Encoder(
        f"projection{seed}", "projection", embedding_size, image_size, FACE, FACE, fingerprint(module.state_dict()),
        torch.device("cpu"), module,
    )  # fmt: skip


def write_run_folder(path: Path, seed: int = 0, embedding_size: int = 8, image_size: int = 16) -> Path:
    """An untrained old model as a run folder."""
    options = {"width": 8, "depth": 1}
    torch.manual_seed(seed)
    module = build_backbone("r18", embedding_size, image_size=image_size, **options)
    path.mkdir()
    torch.save(module.state_dict(), path / "model.pt")
    config = {"network": "r18", "network_options": options, "embedding_size": embedding_size, "image_size": image_size}
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_map_run(
    path: Path,
    base: Path,
    target: Path,
    direction: str = "new_to_old",
    kind: str = "ridge",
    side: Path | None = None,
    side_told: Mapping[str, object] | None = None,
    **told: object,
) -> Path:
    """The run folder of a map from one model's space to another's, fitted on noise; `told` is of the base.

    `side`: a model of side information, and what is told of it.
    """
    encoders = load_encoder(base, **told), load_encoder(target)
    rng = np.random.default_rng(0)
    sides = [
        np.concatenate([encoder(noise(rng, 20, encoder.image_size)).numpy() for _ in range(4)]) for encoder in encoders
    ]
    spaces = [Space(encoder.embedding_size, encoder.name, encoder.fingerprint) for encoder in encoders]
    sided = {}
    if side is not None:
        encoder = load_encoder(side, **(side_told or {}))
        given = np.concatenate([encoder(noise(rng, 20, encoder.image_size)).numpy() for _ in range(4)])
        sides[0] = np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in (sides[0], given)])
        both = joined_fingerprint(encoders[0].fingerprint, encoder.fingerprint)
        spaces[0] = Space(sides[0].shape[1], f"{encoders[0].name},{encoder.name}", both)
        sided["side"] = asdict(BaseModel(BaseModel.stored_path(side), encoder.fingerprint, **(side_told or {})))
    options = {"num_epoch": 1, "hidden": 8} if kind == "mlp" else {}
    fitted = fit_map(kind, *sides, np.arange(80) % 8, spaces=tuple(spaces), **options)
    about = BaseModel(BaseModel.stored_path(base), encoders[0].fingerprint, **told)
    fitted.save(path, {"base": asdict(about), "direction": direction, **sided})
    return path


def noise(rng: np.random.Generator, count: int, image_size: int) -> np.ndarray:
    """Images of a colour each, with noise."""
    colours = rng.integers(0, 256, (count, 1, 1, 3))
    return np.clip(colours + rng.normal(0, 60, (count, image_size, image_size, 3)), 0, 255).astype(np.uint8)


def build_linear(name: str, embedding_size: int, image_size: int, **options: object) -> nn.Module:
    """In place of `build_backbone`: a network without batch statistics, which no change of batch size can touch."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, embedding_size))


def write_verification_set(path: Path, image_size: int = 16, num_pairs: int = 20) -> Path:
    """Noise images, every second pair of one and the same image."""
    rng = np.random.default_rng(0)
    payloads, same = [], []
    for pair in range(num_pairs):
        images = rng.integers(0, 256, (2, image_size, image_size, 3)).astype(np.uint8)
        same.append(pair % 2 == 0)
        payloads += [simplejpeg.encode_jpeg(images[0]), simplejpeg.encode_jpeg(images[0 if same[-1] else 1])]
    path.write_bytes(pickle.dumps((payloads, same)))
    return path
