"""Maps applied on the device, a step of a map's network, and the search, against the CPU in float64."""

import copy

import numpy as np
import torch
from torch.nn.functional import normalize

from ci.gpu.report import Error, Report, difference
from ci.gpu.stand_ins import is_missing
from core.models.mapped import MappedRows, UnitMap
from core.models.maps import fit_map
from core.models.maps.forward import FastFillNetwork

OPTIONS = {
    "procrustes": {"centred": True},
    "ridge": {},
    "low_rank": {"rank": 8},
    "mlp": {"hidden": 16, "num_epoch": 1},
}


def make_pairs(pairs: int, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    source = rng.standard_normal((pairs, sizes[0]), dtype=np.float32)
    lead = rng.standard_normal(sizes, dtype=np.float32)
    return source, source @ lead + 0.5 * rng.standard_normal((pairs, sizes[1]), dtype=np.float32)


def check_map(kind: str, device: torch.device, pairs: int, sizes: tuple[int, int]) -> dict[str, Error]:
    """Fitted, which is work of the CPU, then applied on the device to stored vectors of any length."""
    source, target = make_pairs(pairs, sizes)
    fitted = fit_map(kind, source, target, np.arange(pairs) % 16, **OPTIONS[kind])
    rows = 3.0 * source[:100]
    mapped = MappedRows(UnitMap(fitted).to(device), rows, sizes[1], device, normalized=True)[:]
    plain = copy.deepcopy(fitted.module).double()
    expected = normalize(plain(normalize(torch.from_numpy(rows).double())))
    return {
        "unit vectors": difference(mapped, expected, 1e-5),
        "the map's own": difference(fitted(rows), expected, 1e-5),
    }


def check_forward_network(device: torch.device, size: int, hidden: int) -> dict[str, Error]:
    """Output, predicted error and gradients of FastFill's network in training."""
    torch.manual_seed(0)
    network = FastFillNetwork(size, size, hidden)
    x = torch.randn(64, size)
    results = []
    for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        own = copy.deepcopy(network).to(place, dtype)
        mapped, log_error = own.with_log_error(x.to(place, dtype))
        (mapped.square().sum(1) * (-log_error).exp() + log_error).mean().backward()
        results.append((mapped, log_error, [parameter.grad for parameter in own.parameters()]))
    (mapped, log_error, gradients), (expected, expected_error, expected_gradients) = results
    errors = {"output": difference(mapped, expected, 1e-4), "log error": difference(log_error, expected_error, 1e-4)}
    worst = [difference(one, other, 1e-2) for one, other in zip(gradients, expected_gradients)]
    return {**errors, "gradients": max(worst, key=lambda error: error.found)}


def check_search(device: torch.device, num_rows: int, size: int) -> dict[str, Error]:
    """The k best, in order, of a gallery with equal rows; on all GPUs that faiss sees if the device is one."""
    from core.evaluation.search import search

    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((num_rows, size), dtype=np.float32)
    gallery[1::50] = gallery[::50][: len(gallery[1::50])]
    queries = rng.standard_normal((20, size), dtype=np.float32)
    scores, rows = search(queries, gallery, 10, use_gpu=device.type == "cuda")
    products = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    order = np.argsort(-products.astype(np.float32), axis=1, kind="stable")[:, :10]
    return {
        "rows": Error(float((rows != order).sum()), 0.0),
        "scores": difference(scores, np.take_along_axis(products, order, 1), 1e-6),
    }


def check_vectors(report: Report, device: torch.device, quick: bool) -> None:
    """Maps and search."""
    pairs, sizes = (200, (12, 16)) if quick else (4000, (256, 512))
    for kind in OPTIONS:
        if is_missing("threadpoolctl"):
            report.leave_out("maps", kind, "threadpoolctl is not installed")
            continue
        report.check("maps", kind, lambda kind=kind: check_map(kind, device, pairs, sizes), 15)
    report.check("maps", "FastFill's network", lambda: check_forward_network(device, sizes[0], 4 * sizes[0]))
    if is_missing("faiss"):
        report.leave_out("search", "exact search", "faiss is not installed")
    else:
        num_rows = 500 if quick else 100_000
        report.check("search", "exact search", lambda: check_search(device, num_rows, sizes[1]), 15)
