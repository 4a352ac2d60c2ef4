"""Images a second and peak memory of training and extraction, with the share of the device's matrix-product rate."""

from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import torch

from ci.gpu.rates import TYPES, forward_operations, memory_rate, product_rate, seconds_a_call
from ci.gpu.report import GIB, Error, Report
from ci.gpu.steps import Cell, Sizes, clean_up, make_head_step, make_step
from ci.scale_simulation import Job, Rates, memory_bytes, step_parts
from core.backbones import build_backbone
from core.images.transforms import NORMALIZATIONS
from core.models.encoder import Encoder

NETWORKS: Mapping[str, dict[str, Any]] = {"r50": {}, "r100": {}, "r18": {}, "vit_b": {}}
QUICK_NETWORKS: Mapping[str, dict[str, Any]] = {"r18": {"width": 8, "depth": 1}}
CLASSES, QUICK_CLASSES = (93_431, 1_000_000), (50,)
SAMPLE_RATES = (1.0, 0.1)
HEAD_MEMORY = 0.1
"""Share that a head's peak memory may differ from the formulas by."""
MEASURED, COMPILATION = 1.0, 60.0
"""Seconds of a cell's steps, and what compiling a network may take."""


def cells(networks: Mapping[str, dict[str, Any]], classes: tuple[int, ...], quick: bool) -> list[Cell]:
    """The most important first: the default and the plain loop, then what differs from the default in one thing."""
    found = []
    for network, num_classes in product(networks, classes):
        options = networks[network]
        found.append(Cell(network, num_classes, "fp16", False, False, True, options))
        for precision, compiled, channels_last in product(TYPES, (False,) if quick else (False, True), (True, False)):
            found.append(Cell(network, num_classes, precision, compiled, channels_last, False, options))
    order = list(networks)

    def importance(cell: Cell) -> tuple[int, bool, int]:
        other = (cell.precision != "bf16") + cell.compiled + (not cell.channels_last)
        return (0 if cell.plain else other) + (cell.num_classes != classes[0]), cell.compiled, order.index(cell.network)

    return sorted(found, key=importance)


class Throughput:
    """Measures cells on a device, each beside the plain loop's."""

    def __init__(self, device: torch.device, sizes: Sizes, seconds: float):
        self.device, self.sizes, self.seconds = device, sizes, seconds
        self.rates: dict[str, float] = {}
        self.plain: dict[tuple[str, int], float] = {}
        self.operations: dict[str, float] = {}
        """Of the forward pass for an image, by network."""

    def measure_rate(self, precision: str, size: int) -> tuple[str, dict[str, Any]]:
        self.rates[precision] = product_rate(precision, self.device, size, self.seconds)
        return f"{self.rates[precision] / 1e12:.2f} TFLOP/s", {"operations_per_second": self.rates[precision]}

    def measure_memory(self, numbers: int) -> tuple[str, dict[str, Any]]:
        self.rates["memory"] = memory_rate(self.device, numbers, self.seconds)
        return f"{self.rates['memory'] / 1e9:.0f} GB/s", {"bytes_per_second": self.rates["memory"]}

    def measure_head(self, num_classes: int, sample_rate: float) -> tuple[str, dict[str, Any]]:
        """The classifier's step and update beside half precision, and what `ci.scale_simulation` predicts."""
        clean_up(self.device)
        job = self._head(num_classes, sample_rate)
        parts = step_parts(job, Rates(product=self.rates["tf32"], memory=self.rates["memory"]))
        predicted = parts["launches"] + parts["head, flops"] + parts["head, memory"]
        seconds = seconds_a_call(make_head_step(job, self.device), self.device, self.seconds)
        values = {"seconds_per_step": seconds, "predicted_seconds": predicted}
        return f"{1e3 * seconds:.2f} ms, predicted {1e3 * predicted:.2f}", values

    def check_head_memory(self, num_classes: int, sample_rate: float) -> dict[str, Error]:
        """Peak memory of steps of the classifier, beside what is held already, against `ci.scale_simulation`."""
        clean_up(self.device)
        job = self._head(num_classes, sample_rate)
        parts = memory_bytes(job)
        predicted = sum(parts.values()) - parts["backbone"]
        held = torch.cuda.memory_allocated(self.device)  # workspaces of the libraries
        step = make_head_step(job, self.device)
        for _ in range(3):
            step()
        peak = torch.cuda.max_memory_allocated(self.device) - held
        found = f"{peak / GIB:.2f} GiB, predicted {predicted / GIB:.2f}"
        return {found: Error(abs(peak / predicted - 1), HEAD_MEMORY)}

    def _head(self, num_classes: int, sample_rate: float) -> Job:
        return Job(1, num_classes, sample_rate, self.sizes.batch, self.sizes.embedding_size)

    def measure(self, cell: Cell) -> tuple[str, dict[str, Any]]:
        clean_up(self.device)
        sizes = self.sizes
        operations = 3 * sizes.batch * (self._forward_operations(cell) + 2 * sizes.embedding_size * cell.num_classes)
        seconds = seconds_a_call(make_step(cell, sizes, self.device), self.device, self.seconds)
        speed, share = sizes.batch / seconds, operations / seconds / self.rates[cell.precision]
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / GIB if on_gpu else None
        key = cell.network, cell.num_classes
        if cell.plain:
            self.plain[key] = speed
        factor = speed / self.plain[key] if key in self.plain else None
        values = {
            "images_per_second": speed,
            "seconds_per_step": seconds,
            "share_of_product_rate": share,
            "peak_gib": peak,
            "times_plain": factor,
        }
        memory = f", {peak:.1f} GiB" if peak is not None else ""
        times = f", {factor:.2f} x plain" if factor is not None else ""
        return f"{speed:8.1f} images/s, {100 * share:4.1f} % of the product rate{memory}{times}", values

    def _forward_operations(self, cell: Cell) -> float:
        if cell.network not in self.operations:
            sizes = self.sizes
            backbone = build_backbone(cell.network, sizes.embedding_size, image_size=sizes.image_size, **cell.options)
            count = forward_operations(backbone.to(self.device), sizes.image_size, self.device)
            self.operations[cell.network] = count
        return self.operations[cell.network]

    def extract(self, network: str, options: dict[str, Any], batch: int) -> tuple[str, dict[str, Any]]:
        """The encoder on images that are on the device: decoding and copying are not in it."""
        clean_up(self.device)
        size = self.sizes.image_size
        module = build_backbone(network, self.sizes.embedding_size, image_size=size, **options)
        module.to(self.device).eval().requires_grad_(False)
        mean, std = NORMALIZATIONS["face"]
        encoder = Encoder(network, network, self.sizes.embedding_size, size, mean, std, "random", self.device, module)
        images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=self.device)
        speed = batch / seconds_a_call(lambda: encoder(images), self.device, self.seconds)
        return f"{speed:8.1f} images/s", {"images_per_second": speed}


def measure_throughput(report: Report, device: torch.device, quick: bool) -> None:
    """Rates of matrix products, then training and extraction, in the order of their importance."""
    networks, classes = (QUICK_NETWORKS, QUICK_CLASSES) if quick else (NETWORKS, CLASSES)
    sizes = Sizes(16, 4, 8) if quick else Sizes() if device.type == "cuda" else Sizes(batch=8)
    throughput = Throughput(device, sizes, 0.01 if quick else MEASURED)
    square = 64 if quick else 8192 if device.type == "cuda" else 1024
    for precision in TYPES:
        report.measure("rate", f"{precision} products", lambda p=precision: throughput.measure_rate(p, square), 3)
    report.measure("rate", "memory", lambda: throughput.measure_memory(1000 if quick else 1 << 28), 3)
    for num_classes, rate in product(classes, SAMPLE_RATES):
        name = f"C {num_classes:,} rate {rate}"
        report.measure("head", name, lambda work=(num_classes, rate): throughput.measure_head(*work), 3)
        if quick or device.type != "cuda":  # a few classes take less than the allocator's smallest block
            report.leave_out("head", f"{name}, memory", "quick" if device.type == "cuda" else "needs CUDA")
        else:
            work = partial(throughput.check_head_memory, num_classes, rate)
            report.check("head", f"{name}, memory", work, 3)
    first, *others = cells(networks, classes, quick)
    for cell in (first, *others):
        seconds = (COMPILATION if cell.compiled else 0) + 3 * throughput.seconds
        report.measure("training", cell.name, lambda cell=cell: throughput.measure(cell), seconds)
        if cell is first:
            for network, options in networks.items():
                work = (network, options, sizes.batch)
                report.measure("extraction", network, lambda work=work: throughput.extract(*work), 3)
