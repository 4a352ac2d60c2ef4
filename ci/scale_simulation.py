"""Step time and memory of a training on many GPUs, from measured parts; the same formulas tried on this machine.

    python ci/scale_simulation.py                          # the tables of docs/scale.md: 8 and 64 H100s
    python ci/scale_simulation.py --rates measured.json    # some or all of the rates as measured (keys: `Rates`)
    python ci/scale_simulation.py --check                  # 1, 2 and 4 gloo processes here: predicted against measured

A step of W ranks with B images each, embeddings of size D, C classes of which each rank holds n = ceil(C / W) and takes
part with s = int(rate n), and a backbone of P parameters. Everything is float32, 4 bytes, where nothing else is said.

    backbone      B / (images a second of forward, backward and update)
    launches      of the kernels of the head and its update, by the CPU: the same for any size; on a CPU none
    head, flops   6 W B s D: logits, gradient of the embeddings, gradient of the weights
    head, memory  LOGIT_PASSES over W B s logits, WEIGHT_PASSES and UPDATE_PASSES over the n D weights; where a sample
                  takes part SAMPLED_WEIGHT_PASSES and SAMPLED_UPDATE_PASSES over s D (drawing it, some passes over n
                  numbers, is left out); on a CPU also the pages of the weights' gradient, which is allocated anew
    exchange      all-gather and reduce-scatter of W B D, each (W - 1) / W of its bytes over the link; two all-reduces
                  of W B and 2 W B numbers, each 2 (W - 1) / W; a latency each
    gradients     the all-reduce of P numbers, less `overlap` times the backbone's backward pass, two thirds of it
    loader        images of all ranks of a node / (images a second a node)

A step takes the larger of the loader's time and the sum of the others.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core.backbones import build_backbone
from core.engine.row_optimizers import RowSGD
from core.errors import UserError, run_program
from core.evaluation.tables import format_table
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.json_files import read_json
from core.parallel.collectives import all_reduce_

FLOAT = 4
LOGIT_PASSES = 15
"""Reads and writes of the logits in memory: product written, scaled, maximum, shifted, exponential, sum; scaled to the
gradient; in the backward pass scaled, and read by two products."""
WEIGHT_PASSES = 9
"""Of the weights: two reads in the forward pass (product, norms), in the backward pass one by a product, one write of
the gradient, two reads and three passes more to take out its part along the weights."""
UPDATE_PASSES = 5
"""SGD with momentum: reads weight, gradient and momentum, writes weight and momentum."""
SAMPLED_WEIGHT_PASSES = WEIGHT_PASSES + 4
"""The rows are copied out of the weights in both passes."""
SAMPLED_UPDATE_PASSES = 17
"""`core.engine.row_optimizers`: rows of weight and momentum copied out (4), three sums (9), written back (4)."""
BLOCK_ROWS, BLOCKS, SAMPLED_BLOCKS = 65536, 1, 5
"""Rows that are worked on at a time on CUDA, and how many copies of them there are at once: in the backward pass, and
of sampled rows in the update."""
BACKWARD = 2 / 3
"""Share of a backbone's time."""
GIB = 2**30


@dataclass(frozen=True)
class Rates:
    """What the parts of a machine do in a second, measured or assumed.

    The defaults are for a node of 8 H100 SXM GPUs. `backbone`, `launches`, `product` and `memory` were measured on one
    of them (docs/gpu.md), `loader` beside it. The others are ASSUMPTIONS, measured by nobody here: NVIDIA's data sheets
    of the H100 (900 GB/s of NVLink both ways together) and of the DGX H100 (a network card of 400 Gb/s a GPU), each
    times a share that is usual.
    """

    backbone: float = 3_500.0
    """Images a GPU trains in a second: r50 at 112x112, B = 128, bf16; 41.4 ms with a head of 93,431 classes, less the
    5.0 ms which that head takes alone."""
    launches: float = 4e-3
    """Seconds to launch the kernels of a head and its update: five measured heads took 3.4 to 5.2 ms more than their
    products and passes."""
    product: float = 377e12
    """FLOP/s of the head's products: TF32, of matrices of side 8192."""
    memory: float = 2.997e12
    """Bytes of device memory that a pass reads or writes in a second."""
    fresh: float = math.inf
    """Bytes of newly allocated memory that a system hands out in a second; PyTorch keeps that of a GPU."""
    link: float = 0.8 * 450e9
    """Bytes that a GPU sends in a second to the others of its node."""
    network: float = 0.8 * 50e9
    """Bytes that a GPU sends in a second to other nodes."""
    latency: float = 30e-6
    """Seconds before a collective moves its first byte."""
    overlap: float = 0.8
    """Share of the backbone's backward pass during which gradients are exchanged unnoticed."""
    loader: float = 41_000.0
    """Images a node reads and decodes in a second: 15 workers on the 16 cores beside an H100
    (`python -m ci.benchmarks loader`)."""
    disk: float = 2e9
    """Bytes a node writes to a checkpoint in a second."""


@dataclass(frozen=True)
class Job:
    """A training."""

    gpus: int
    classes: int
    rate: float = 1.0
    batch: int = 128
    """B."""
    embedding: int = 512
    """D."""
    parameters: float = 43.6e6
    """P: r50's."""
    activations: float = 35.5e6
    """Bytes that an image keeps for the backward pass: r50's in bf16, by `activation_bytes`."""
    gpus_a_node: int = 8

    @property
    def local_classes(self) -> int:
        """n."""
        return math.ceil(self.classes / self.gpus)

    @property
    def sampled(self) -> int:
        """s."""
        return self.local_classes if self.rate == 1 else int(self.rate * self.local_classes)


def exchange_seconds(nbytes: float, ranks: int, share: float, rates: Rates, nodes: int = 1) -> float:
    """A collective over `ranks` in rings, `share` times (W - 1) / W of its bytes passing each rank's slowest link."""
    if ranks == 1:
        return 0.0
    return rates.latency + share * (ranks - 1) / ranks * nbytes / (rates.network if nodes > 1 else rates.link)


def step_parts(job: Job, rates: Rates) -> dict[str, float]:
    """Seconds of each part of a step."""
    w, nodes = job.gpus, math.ceil(job.gpus / job.gpus_a_node)
    rows = w * job.batch
    weight_passes = WEIGHT_PASSES + UPDATE_PASSES if job.rate == 1 else SAMPLED_WEIGHT_PASSES + SAMPLED_UPDATE_PASSES
    moved = FLOAT * job.sampled * (LOGIT_PASSES * rows + weight_passes * job.embedding)
    exchange = sum(
        exchange_seconds(FLOAT * numbers, w, share, rates, nodes)
        for numbers, share in ((rows * job.embedding, 1), (rows * job.embedding, 1), (rows, 2), (2 * rows, 2))
    )
    backbone = job.batch / rates.backbone
    gradients = exchange_seconds(FLOAT * job.parameters, w, 2, rates, nodes)
    return {
        "backbone": backbone,
        "launches": rates.launches,
        "head, flops": 6 * rows * job.sampled * job.embedding / rates.product,
        "head, memory": moved / rates.memory + FLOAT * job.sampled * job.embedding / rates.fresh,
        "exchange": exchange,
        "gradients": max(0.0, gradients - rates.overlap * BACKWARD * backbone),
        "loader": min(w, job.gpus_a_node) * job.batch / rates.loader,
    }


def step_seconds(parts: Mapping[str, float]) -> float:
    """A step whose batches are read while it computes."""
    return max(parts["loader"], sum(seconds for name, seconds in parts.items() if name != "loader"))


def bottleneck(parts: Mapping[str, float]) -> str:
    """The loader if the others wait for it, else the longest of them."""
    if step_seconds(parts) == parts["loader"]:
        return "loader"
    return max((name for name in parts if name != "loader"), key=parts.__getitem__)


def memory_bytes(job: Job) -> dict[str, float]:
    """Bytes of a GPU by what they are for. Momentum is of all rows, the gradient of those that take part."""
    row = FLOAT * job.embedding
    return {
        "weights": job.local_classes * row,
        "momentum": job.local_classes * row,
        "gradient": job.sampled * (row + (8 if job.rate < 1 else 0)),
        "rows": (SAMPLED_BLOCKS if job.rate < 1 else BLOCKS) * min(job.sampled, BLOCK_ROWS) * row,
        "logits": FLOAT * job.gpus * job.batch * job.sampled,
        "backbone": 3 * FLOAT * job.parameters + job.batch * job.activations,
    }


def checkpoint_bytes(job: Job) -> float:
    """Weights and momentum of head and backbone."""
    return 2 * FLOAT * (job.classes * job.embedding + job.parameters)


def activation_bytes(network: nn.Module, image_size: int = 112, precision: torch.dtype = torch.float32) -> float:
    """Bytes that one image more in a batch keeps for the backward pass; counted in forward passes on the CPU."""

    def kept_by(batch: int) -> int:
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        images = torch.zeros(batch, 3, image_size, image_size)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                network(images)
        return sum(storage.nbytes() for storage in kept.values())

    return (kept_by(4) - kept_by(2)) / 2


def jobs(batch: int = 128) -> list[Job]:
    """The trainings of docs/scale.md."""
    return [
        Job(gpus, classes, rate, batch)
        for classes in (2_000_000, 10_000_000)
        for gpus in (8, 64)
        for rate in (1.0, 0.1)
    ]


def time_table(rates: Rates, batch: int) -> str:
    """A line for each training: its parts in milliseconds, the step, the images a second, the bottleneck."""
    rows = []
    for job in jobs(batch):
        parts = step_parts(job, rates)
        step = step_seconds(parts)
        disk = checkpoint_bytes(job) / (rates.disk * math.ceil(job.gpus / job.gpus_a_node))
        shown = [f"{1e3 * seconds:.1f}" for seconds in parts.values()]
        rows.append(
            [
                f"{job.classes / 1e6:.0f} M", str(job.gpus), f"{job.rate:g}", *shown, f"{1e3 * step:.1f}",
                f"{job.gpus * job.batch / step:,.0f}", bottleneck(parts),
                f"{checkpoint_bytes(job) / GIB:.0f} GiB, {disk:.0f} s",
            ]
        )  # fmt: skip
    header = [
        "classes",
        "GPUs",
        "rate",
        *step_parts(jobs()[0], rates),
        "step, ms",
        "images/s",
        "bottleneck",
        "checkpoint",
    ]
    return format_table(header, rows)


def memory_table(batch: int) -> str:
    """A line for each training: GiB of a GPU."""
    rows = []
    for job in jobs(batch):
        parts = memory_bytes(job)
        numbers = (*parts.values(), sum(parts.values()))
        rows.append(
            [f"{job.classes / 1e6:.0f} M", str(job.gpus), f"{job.rate:g}", *(f"{n / GIB:.2f}" for n in numbers)]
        )
    return format_table(["classes", "GPUs", "rate", *memory_bytes(jobs()[0]), "together"], rows)


def load_rates(path: Path | None) -> Rates:
    """The default rates with those of a JSON file in their place; `UserError` for a key or a number that is none."""
    told = {} if path is None else read_json(path, "file of rates")
    known = {field.name for field in fields(Rates)}
    for name, value in told.items():
        if name not in known or isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{path}: {name!r}: {value!r} is no rate; known are the numbers {', '.join(sorted(known))}")
    return replace(Rates(), **told)


# What follows tries the formulas here: the ranks measure the parts alone and the whole step in turn, on the same cores.

CHECK = Job(gpus=1, classes=40_000, batch=32, embedding=256, gpus_a_node=64)
CHECK_NETWORK = {"name": "r18", "image_size": 32, "width": 8, "depth": 1}
PAGE = 1024
"""Numbers in a page of memory."""
SMALL = 10_000
"""Classes of a rank's products that are measured alone."""


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each work, all done in turn, after a round to warm up.

    All ranks begin each together, and what counts is the slowest of them, for which the others wait in a step.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            if dist.is_initialized():
                dist.barrier()
            started = time.perf_counter()
            work()
            taken = all_reduce_(torch.tensor(time.perf_counter() - started), "max")
            seconds[name].append(taken.item())
    return {name: statistics.median(rounds[1:]) for name, rounds in seconds.items()}


class Training:
    """The step of a training on this rank: the engine's parts, random images."""

    def __init__(self, job: Job, network: nn.Module):
        self.job = job
        self.head = PartialFC(ArcFace(16.0, 0.2), job.embedding, job.classes, job.rate)
        self.network = DistributedDataParallel(network) if dist.is_initialized() else network
        parameters = [*network.parameters(), *self.head.parameters()]
        self.optimizer = RowSGD(parameters, lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)
        side = CHECK_NETWORK["image_size"]
        self.images, self.labels = torch.randn(job.batch, 3, side, side), torch.arange(job.batch) % job.classes

    def step(self) -> None:
        self.head(self.network(self.images), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def parts_alone(job: Job) -> tuple[dict[str, Callable[[], object]], Callable[[Mapping[str, float]], Rates]]:
    """Parts of a step, each by itself, and what turns their seconds to rates."""
    network = _network(job)
    optimizer = RowSGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)
    images = torch.randn(job.batch, 3, CHECK_NETWORK["image_size"], CHECK_NETWORK["image_size"])
    rows = job.gpus * job.batch
    embeddings, weight = torch.randn(rows, job.embedding), torch.randn(SMALL, job.embedding)
    logits, buffer = torch.empty(rows, SMALL), torch.zeros(1 << 23)
    small, large = torch.zeros(256), torch.zeros(1 << 20)

    def backbone() -> None:
        network(images).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def products() -> None:
        torch.mm(embeddings, weight.T, out=logits)
        torch.mm(logits, weight)
        torch.mm(logits.T, embeddings)

    works: dict[str, Callable[[], object]] = {
        "backbone": backbone,
        "products": products,
        "memory": lambda: buffer.mul_(1.0),
        "fresh": lambda: torch.empty(job.sampled, job.embedding)[:: PAGE // job.embedding].fill_(0.0),
    }
    if job.gpus > 1:
        works |= {"small": lambda: dist.all_reduce(small), "large": lambda: dist.all_reduce(large)}

    def rates(seconds: Mapping[str, float]) -> Rates:
        found = Rates(
            backbone=job.batch / seconds["backbone"],
            product=6 * rows * SMALL * job.embedding / seconds["products"],
            memory=2 * buffer.nbytes / seconds["memory"],
            fresh=FLOAT * job.sampled * job.embedding / seconds["fresh"],
            launches=0.0,  # a CPU has none
            overlap=0.0,  # of gloo, which computes on the same cores
            loader=math.inf,
        )
        if job.gpus == 1:
            return found
        moved = 2 * (job.gpus - 1) / job.gpus * large.nbytes
        link = moved / max(seconds["large"] - seconds["small"], 1e-9)
        return replace(found, latency=seconds["small"], link=link, network=link)

    return works, rates


def check_rank(rank: int, job: Job, folder: str, repeats: int) -> None:
    """One rank of a check; the first one writes what it predicts and measures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if job.gpus > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{job.gpus}", rank=rank, world_size=job.gpus)
    job = replace(job, parameters=sum(each.numel() for each in _network(job).parameters()))
    works, rates = parts_alone(job)
    seconds = in_turn({**works, "step": Training(job, _network(job)).step}, repeats)
    if rank == 0:
        found = {"parts": step_parts(job, rates(seconds)), "measured": seconds["step"]}
        Path(folder, f"{job.gpus}.json").write_text(json.dumps(found))
    if job.gpus > 1:
        dist.barrier()
        dist.destroy_process_group()


def _network(job: Job) -> nn.Module:
    options = dict(CHECK_NETWORK)
    return build_backbone(options.pop("name"), job.embedding, **options)


def check(ranks: Sequence[int] = (1, 2, 4), repeats: int = 7, job: Job = CHECK) -> list[list[str]]:
    """For each number of ranks: milliseconds of the parts, of the step predicted and measured, and their ratio."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in ranks:
            mp.spawn(check_rank, (replace(job, gpus=number), folder, repeats), nprocs=number)
            found = json.loads(Path(folder, f"{number}.json").read_text())
            parts, measured = found["parts"], found["measured"]
            predicted = step_seconds(parts)
            shown = (*(seconds for name, seconds in parts.items() if name != "loader"), predicted, measured)
            rows.append([str(number), *(f"{1e3 * each:.1f}" for each in shown), f"{predicted / measured:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, help="JSON of measured rates, the others are the assumed ones")
    parser.add_argument("--batch", type=int, default=128, help="images a GPU")
    parser.add_argument("--check", action="store_true", help="predicted against measured, on gloo processes here")
    parser.add_argument("--repeats", type=int, default=7, help="steps that a check measures")
    args = parser.parse_args()
    if args.check:
        parts = [name for name in step_parts(CHECK, Rates()) if name != "loader"]
        header = ["ranks", *(f"{name}, ms" for name in parts), "predicted, ms", "measured, ms", "ratio"]
        print(format_table(header, check(repeats=args.repeats)))
        return
    rates = load_rates(args.rates)
    default = "an H100 measured, networks and disk assumed"
    source = default if args.rates is None else f"{args.rates}, and for what it leaves out {default}"
    print(f"rates: {source}\n{json.dumps(asdict(rates), indent=1)}\n")
    print(f"{time_table(rates, args.batch)}\n\nGiB of a GPU\n\n{memory_table(args.batch)}")
    for name in ("r50", "r100"):
        network = build_backbone(name, 512, image_size=112).train()
        sizes = [activation_bytes(network, precision=precision) / 1e6 for precision in (torch.float32, torch.bfloat16)]
        print(f"\n{name}: an image keeps {sizes[0]:.0f} MB for the backward pass in float32, {sizes[1]:.0f} MB in bf16")


if __name__ == "__main__":
    run_program(main)
