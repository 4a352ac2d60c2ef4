"""Time and peak memory of one training step of the ArcFace head: PartialFC beside the plain softmax in autograd.

    python ci/benchmarks/partial_fc.py                      # B 128, C 93,431, D 512: the classes of MS1M-V3
    python ci/benchmarks/partial_fc.py --classes 500000
    python ci/benchmarks/partial_fc.py --quick

Each way runs in a process of its own, on CUDA if there is one, and is measured from gradients of None; the update is
that of SGD with momentum. Memory is that above embeddings, class weights and momentum: of the allocator on CUDA, of the
process (resident) on the CPU.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

import torch
from torch.nn.functional import cross_entropy, linear, normalize

from core.engine.row_optimizers import RowSGD
from core.errors import run_program
from core.heads import PartialFC
from core.heads.margins import ArcFace

MIB = 2**20
SAMPLE_RATE = 0.1


def plain(head: PartialFC, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The head's loss as one would write it for one process."""
    logits = linear(normalize(embeddings), normalize(head.weight))
    return cross_entropy(head.margin(logits, labels), labels)


def full(head: PartialFC, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return head(embeddings, labels)


def sampled(head: PartialFC, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    head.sample_rate = SAMPLE_RATE
    return head(embeddings, labels)


WAYS = {"plain autograd": plain, "PartialFC": full, f"PartialFC, sample_rate {SAMPLE_RATE}": sampled}


def measure(way: str, size: tuple[int, int, int], num_steps: int, results) -> None:
    """Put (median seconds of a step, of an update, peak MiB, loss of the first step) into `results`."""
    batch_size, num_classes, embedding_size = size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    head = PartialFC(ArcFace(), embedding_size, num_classes).to(device)
    optimizer = RowSGD([head.weight], lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)
    optimizer.state[head.weight]["momentum_buffer"] = torch.zeros_like(head.weight)
    embeddings = torch.randn(batch_size, embedding_size, device=device, requires_grad=True)
    labels = torch.randint(num_classes, (batch_size,), device=device)
    before = resident_mib() if device.type == "cpu" else torch.cuda.memory_allocated() / MIB
    seconds, updates, losses = [], [], []
    for _ in range(num_steps + 1):
        start = time.perf_counter()
        loss = WAYS[way](head, embeddings, labels)
        loss.backward()
        losses.append(loss.item())
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        optimizer.step()
        synchronize(device)
        updates.append(time.perf_counter() - start)
        head.weight.grad = embeddings.grad = None
    peak = resident_mib() if device.type == "cpu" else torch.cuda.max_memory_allocated() / MIB
    results.put((statistics.median(seconds[1:]), statistics.median(updates[1:]), peak - before, losses[0]))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def resident_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="B 32, C 10,000, D 128, 3 steps")
    parser.add_argument("--classes", type=int, default=93_431)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one to warm up")
    args = parser.parse_args()
    size, num_steps = ((32, 10_000, 128), 3) if args.quick else ((128, args.classes, 512), args.steps)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print("B {}, C {:,}, D {}, float32, {}".format(*size, device))
    spawning = multiprocessing.get_context("spawn")
    for way in WAYS:
        results = spawning.SimpleQueue()
        process = spawning.Process(target=measure, args=(way, size, num_steps, results))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{way} ended with status {process.exitcode}")
        seconds, update, peak, loss = results.get()
        print(f"{way:26} {seconds:7.3f} s/step {update:7.3f} s/update {peak:8.0f} MiB   loss {loss:.5f}", flush=True)


if __name__ == "__main__":
    run_program(main)
