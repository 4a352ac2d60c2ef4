"""Run a function on spawned gloo ranks and collect what each returns."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 120


def run_on_ranks(worker, num_ranks, folder):
    """`[worker(rank, num_ranks) for every rank]`, each in a process of its own. A rank's failure fails the caller."""
    processes = mp.spawn(_run, (worker, num_ranks, str(folder)), num_ranks, join=False)
    deadline = time.monotonic() + SECONDS
    while not processes.join(timeout=1.0):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(f"{num_ranks} ranks did not end within {SECONDS} s")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(num_ranks)]


def _run(rank, worker, num_ranks, folder):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout, num_ranks, rank)
    torch.save(worker(rank, num_ranks), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
