"""What works on stored embeddings, and the encoder that makes them, on the device against the CPU."""

import copy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import core.engine.map_training
from ci.gpu.losses import make_store
from ci.gpu.report import Error, Report, difference
from ci.gpu.stand_ins import is_missing
from ci.gpu.training import KeptMetrics
from core.backbones import build_backbone
from core.embeddings.credibility import mask_by_distances
from core.embeddings.refinement import refined_prototypes
from core.embeddings.store import EmbeddingStore
from core.engine.map_method import Fitting, Model
from core.files import ROOT
from core.models.encoder import Encoder
from core.parallel.ranks import Ranks
from core.program import load_method
from core.settings.map_settings import ModelArgument

CPU = torch.device("cpu")
NETWORKS = {"r18": {"width": 16, "depth": 1}, "vit_t": {}}
"""With their options in the quick check."""
MAPS = {"fct": {"hidden": 16}, "lambda_orthogonality": {}}
"""Methods that train a map, with options; FastFill wants a classifier too."""
NEAR = 0.9
"""Distance to a class centre, of unit vectors."""


def make_encoder(module: nn.Module, size: int, image_size: int, device: torch.device) -> Encoder:
    """A frozen model that takes images of `image_size`; `size`: of its embeddings."""
    centre = (127.5, 127.5, 127.5)
    module = copy.deepcopy(module).eval().requires_grad_(False).to(device)
    return Encoder("synthetic", "r18", size, image_size, centre, centre, "synthetic", device, module)


def check_encoder(network: str, device: torch.device, quick: bool) -> dict[str, Error]:
    """Embeddings of random images, and those of the network on the CPU for normalised pixels."""
    torch.manual_seed(0)
    module = build_backbone(network, 32, image_size=112, **(NETWORKS[network] if quick else {})).eval()
    images = torch.randint(0, 256, (4, 112, 112, 3), dtype=torch.uint8)
    found = make_encoder(module, 32, 112, device)(images)
    with torch.no_grad():
        expected = module(((images.double() - 127.5).permute(0, 3, 1, 2) / 127.5).float())
    return {"embeddings": difference(found, expected, 1e-4)}


def attention(new: Tensor) -> Tensor:
    """Weights (n, k) of the images of a class by their similarities, as UniBCT's, of rows that sum to 1."""
    return torch.softmax(new @ new.mT, dim=2).mean(1)


def check_prototypes(device: torch.device, num_classes: int, size: int) -> dict[str, Error]:
    """Classes in a list of their own, weighted by another model's embeddings."""
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        old, new = (make_store(Path(path), num_classes, size, 6) for path in (folder, other))
        classes = np.arange(num_classes)[::-2].copy()
        found = refined_prototypes(new, old, classes, attention, device)
        rows = 6 * classes[:, None] + np.arange(6)
        features = torch.from_numpy(np.array(new.features)).double()[rows]
        weights = attention(features)
        expected = (weights[:, None] @ torch.from_numpy(np.array(old.features)).double()[rows]).squeeze(1)
    return {"prototypes": difference(found, expected, 1e-4)}


def check_mask(device: torch.device, num_classes: int, size: int) -> dict[str, Error]:
    """Rows by their distances to all class centres; `wrong`: the share decided otherwise than on the CPU."""
    with TemporaryDirectory() as folder:
        store = make_store(Path(folder), num_classes, size, 6)

        def near_one(distances: Tensor, variances: Tensor) -> Tensor:
            return (distances < NEAR + variances.to(distances)).sum(1) == 1

        found, expected = (mask_by_distances(store, near_one, Ranks(0, 1, place)) for place in (device, CPU))
    if expected.all() or not expected.any():
        raise AssertionError("the rule decides nothing")
    return {"wrong": Error(float((found != expected).mean()), 1e-3)}


def check_map_training(name: str, device: torch.device, num_classes: int, size: int) -> dict[str, Error]:
    """What a map trained for two epochs makes of the old embeddings, the same pairs in the same order."""
    found, expected = (fitted_output(name, place, num_classes, size) for place in (device, CPU))
    return {"mapped": difference(found, expected, 2e-2)}


def fitted_output(name: str, device: torch.device, num_classes: int, size: int) -> Tensor:
    method = load_method(ROOT / "methods" / name / "train.py")
    with TemporaryDirectory() as folder:
        settings = method.settings_type(
            rec="synthetic", old_model="old", new_model="new", output=str(Path(folder) / "run"), num_epoch=2,
            pairs_per_step=64, **MAPS[name],
        )  # fmt: skip
        models = [stored_model(argument, Path(folder), num_classes, size) for argument in settings.models]
        direction = settings.direction or method.usual_direction(settings)
        run = Fitting(settings, name, direction, Ranks(0, 1, device), *models)
        torch.manual_seed(0)
        with patch.object(core.engine.map_training, "MetricsLog", KeptMetrics):
            fitted = next(iter(method.fit(run).values()))
        return torch.as_tensor(fitted.map(np.asarray(models[0].features.features)))


def stored_model(argument: ModelArgument, folder: Path, num_classes: int, size: int) -> Model:
    """A model whose stored embeddings are another linear function of the same vectors than the other model's."""
    path = folder / argument.which
    path.mkdir()
    store = make_store(path, num_classes, size, 6)
    if argument.which == "new":
        turned = np.array(store.features) @ np.random.default_rng(3).standard_normal((size, size), dtype=np.float32)
        np.save(path / "features.npy", turned)
        store = EmbeddingStore.open(path)
    encoder = make_encoder(nn.Flatten(), size, 16, CPU)
    return Model(argument, path, encoder, store)


def check_embeddings(report: Report, device: torch.device, quick: bool) -> None:
    """Encoders, what methods make of stores, and maps that are trained."""
    num_classes, size = (30, 8) if quick else (1000, 128)
    for network in NETWORKS:
        report.check("embeddings", f"encoder {network}", lambda n=network: check_encoder(n, device, quick), 10)
    report.check("embeddings", "refined prototypes", lambda: check_prototypes(device, num_classes, size))
    report.check("embeddings", "mask by distances", lambda: check_mask(device, num_classes, size))
    for name in MAPS:
        if is_missing("threadpoolctl"):
            report.leave_out("embeddings", f"training of {name}", "threadpoolctl is not installed")
            continue
        work = partial(check_map_training, name, device, num_classes, size)
        report.check("embeddings", f"training of {name}", work, 20)
