"""Check a GPU: what the project computes on it against the CPU, then speed and memory of training and extraction.

    python ci/gpu_check.py --out work_dirs/gpu_check.json         under 9 minutes on one GPU
    python ci/gpu_check.py --quick                                tiny sizes, a minute, without a GPU too
    python ci/gpu_check.py --part heads losses

It needs torch, torchvision, numpy and the working tree. What needs another package is left out, with a line, where that
is missing. A line for each check: what was compared, the largest error and what is allowed (as a share of the largest
number); for training the images a second, the share of the rate at which the same device multiplies matrices (three
times the forward pass's operations count, recomputed ones do not), the peak memory, and the factor over a plain loop
(NCHW, eager, fp16 autocast, the logits of all classes). Status 1 if a check fails. Without a GPU it is quick.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: for the runs that must repeat

import torch  # noqa: E402

from ci.gpu.stand_ins import stand_in  # noqa: E402

missing = stand_in()

from ci.gpu.decoding import check_decoding  # noqa: E402
from ci.gpu.embeddings import check_embeddings  # noqa: E402
from ci.gpu.heads import check_heads  # noqa: E402
from ci.gpu.images import check_images  # noqa: E402
from ci.gpu.losses import check_losses  # noqa: E402
from ci.gpu.rates import tf32  # noqa: E402
from ci.gpu.report import Report  # noqa: E402
from ci.gpu.throughput import measure_throughput  # noqa: E402
from ci.gpu.training import check_training  # noqa: E402
from ci.gpu.vectors import check_vectors  # noqa: E402
from core.parallel.ranks import process_group  # noqa: E402

SECONDS = 480.0
"""Of all parts: the start of Python and the last cell's end come on top."""
CORRECTNESS = {
    "heads": check_heads,
    "losses": check_losses,
    "images": check_images,
    "decoding": check_decoding,
    "vectors": check_vectors,
    "embeddings": check_embeddings,
    "training": check_training,
}
PARTS = (*CORRECTNESS, "throughput")


def about(device: torch.device) -> dict[str, str | int]:
    """The machine and the versions."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()) if on_gpu else "",
    }


def check(parts: Sequence[str], quick: bool, device: str, seconds: float, out: Path | None) -> int:
    """The number of checks that failed."""
    report = Report(seconds)
    start = time.monotonic()
    with process_group(device) as ranks:
        described = about(ranks.device)
        print("; ".join(f"{name} {value}" for name, value in described.items()))
        if missing:
            print(f"not installed: {', '.join(missing)}")
        with tf32(False):
            for name, part in CORRECTNESS.items():
                if name in parts:
                    part(report, ranks.device, quick)
        if "throughput" in parts:
            measure_throughput(report, ranks.device, quick)
    outcomes = [result.outcome for result in report.results]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("ok", "FAILED", "left out"))
    print(f"{counts}; {time.monotonic() - start:.0f} s")
    if out is not None:
        report.write(out, {**described, "quick": quick})
    return len(report.failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin nothing that would end later")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    quick = args.quick or (args.device == "auto" and not torch.cuda.is_available())
    return min(check(args.part, quick, args.device, args.seconds, args.out), 1)


if __name__ == "__main__":
    sys.exit(main())
