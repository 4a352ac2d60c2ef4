"""What a benchmark ran on: the machine, how busy it was, and the versions."""

import os
import platform
from pathlib import Path

import numpy as np
import torch

from core.engine.run_folder import code_version
from core.memory import machine_memory

__all__ = ["busy", "in_words", "machine", "versions"]


def machine() -> dict[str, object]:
    """Processor, cores that this process may use, PyTorch's threads, memory, GPU, and the load of the last minute."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(machine_memory() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Of Python, of what computes, and of the project with its revision."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "bctlab": code_version(),
    }


def busy(machine: dict[str, object]) -> bool:
    """Whether the benchmark's threads and the work that was there before it want more cores than there are."""
    return machine["load"] + machine["threads"] > machine["cores"] + 0.5


def in_words(machine: dict[str, object], versions: dict[str, str]) -> str:
    """Two lines, and a third one if the machine is busy."""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, PyTorch's threads {machine['threads']}, "
        f"{machine['memory_gib']} GiB, {machine['gpu'] or 'no GPU'}, load {machine['load']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if busy(machine):
        lines.append("WARNING: the machine is busy: trust the ratios, those by CPU time first, not the seconds")
    return "\n".join(lines)
