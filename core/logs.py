"""Console logging for programs: INFO lines on stderr from the first rank, warnings and errors from all."""

import logging
import os
import sys

__all__ = ["set_up_logging"]


def set_up_logging() -> None:
    """Send log records to stderr; ranks but the first are silent below WARNING. Called once, by a program's main."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s rank {rank}: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("faiss", "matplotlib", "onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
