"""The run folder: the results of a training, in files that describe themselves.

`model.pt` (the backbone's state dict alone), `classifier.pt` (weight and bias of the classifier over the data's
classes), `config.json` (the settings as run), `metrics.jsonl` (a line per logged step), `tensorboard/` and
`checkpoints/`.
"""

import json
import math
import os
import subprocess
import threading
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import core
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.files import ROOT
from core.json_files import parse_json, read_json
from core.models.weights import fingerprint
from core.outputs import make_folder, remove, replaced_atomically, require_writable, writing
from core.parallel.ranks import Ranks, claimed_by_ranks
from core.room import require_room
from core.settings import MapSettings, Settings

__all__ = ["LINE", "MetricsLog", "RunFolder", "code_version"]

LINE = 1024
"""About the bytes that one step's values take in `metrics.jsonl` and for TensorBoard."""
CREATED_HERE = ("checkpoints", "tensorboard", "metrics.jsonl", "classifier.pt", "config.json", "model.pt")
"""In the order in which they are removed: a model without checkpoints is not trained on by accident."""


def code_version() -> str:
    """The version of the package and, in a git checkout, the commit, with `+changes` if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return core.__version__
    return f"{core.__version__} {commit.stdout.strip()}{'+changes' if changes.stdout.strip() else ''}"


class RunFolder:
    """Paths and files of one run. Only the first rank writes."""

    def __init__(self, path: Path):
        if path.exists() and not path.is_dir():
            raise UserError(f"output {path} is a file: name a folder")
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def claimed(self, work: str, ranks: Ranks) -> AbstractContextManager[None]:
        """Hold the folder for one run; `UserError` that says which other one holds it. Collective."""
        return claimed_by_ranks(self.path, work, ranks)

    def require_writable(self) -> None:
        """`UserError` unless a run can write its files here. Makes nothing."""
        for folder in (self.path, self.checkpoints, self.tensorboard):
            require_writable(folder)

    def require_room(self, needed: int) -> None:
        """`UserError` unless there is room for a run's files of `needed` bytes, in place of those that are there."""
        files = [file for name in CREATED_HERE for file in (self.path / name, *(self.path / name).rglob("*"))]
        require_room(self.path, needed - sum(file.stat().st_size for file in files if file.is_file()))

    def prepare(self, resume: bool) -> None:
        """Create the folder; unless `resume` is true, remove the files of an earlier run."""
        with writing(self.path):
            make_folder(self.path)
        if not resume:
            for name in CREATED_HERE:
                remove(self.path / name)

    def write_config(self, values: dict[str, Any]) -> None:
        """Write `config.json`: a flat dict of the settings and of what was derived from the data."""
        with replaced_atomically(self.path / "config.json") as temporary:
            temporary.write_text(json.dumps(values, indent=2, default=list) + "\n")

    def read_config(self) -> dict[str, Any]:
        """`config.json` as an earlier start of the run wrote it; empty if there is none or it is not readable."""
        try:
            return read_json(self.path / "config.json", "config of a run folder")
        except UserError:
            return {}

    def changed_settings(self, settings: Settings | MapSettings) -> list[str]:
        """The settings that differ from those in `config.json`, as "key old -> new".

        Keys missing in the file are ignored, and so are the counts of the data, what a run derives from its data or its
        method where the setting is None, and the weights that it began with, which are not read again. Empty if there
        is no such file or it is not readable.
        """
        before = self.read_config()
        now = json.loads(json.dumps(asdict(settings), default=list))
        ignored = {"num_classes", "num_image", "weights", "head_weights"}
        ignored |= {name for name in ("image_size", "direction") if now.get(name) is None}
        changed = [key for key in now if key not in ignored and before.get(key, now[key]) != now[key]]
        return [f"{key} {before[key]!r} -> {now[key]!r}" for key in changed]

    def write_model(self, backbone: nn.Module) -> None:
        """Write `model.pt`, a plain float32 state dict on the CPU."""
        with replaced_atomically(self.path / "model.pt") as temporary:
            torch.save({name: tensor.detach().cpu() for name, tensor in backbone.state_dict().items()}, temporary)

    def write_classifier(self, tensors: dict[str, Tensor]) -> None:
        """Write `classifier.pt`: `weight` (C, D) and, for a classifier with a bias, `bias` (C,), float32, CPU."""
        with replaced_atomically(self.path / "classifier.pt") as temporary:
            torch.save(tensors, temporary)

    def holds_model(self, backbone: nn.Module) -> bool:
        """True if `model.pt` exists and holds exactly these weights."""
        path = self.path / "model.pt"
        return path.exists() and fingerprint(read_state_dict(path)) == fingerprint(backbone.state_dict())


class MetricsLog:
    """Scalars by step, to `metrics.jsonl` and TensorBoard. A resumed run drops the lines after its checkpoint."""

    def __init__(self, folder: RunFolder, first_step: int):
        self.path, self.board_path = folder.path / "metrics.jsonl", folder.tensorboard
        if self.path.exists():
            kept = [line for line in self.path.read_text(errors="replace").splitlines() if _step_of(line) <= first_step]
            with replaced_atomically(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))
        with writing(self.path):
            self.file = open(self.path, "a", buffering=1)
        with writing(self.board_path):
            self.board = SummaryWriter(str(self.board_path), purge_step=first_step + 1)
        threading.excepthook = _report_thread

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log `values` under their names. JSON gets null for values that are not finite (a gradient norm with fp16)."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        end = self.file.tell()
        with writing(self.path):
            try:
                self.file.write(json.dumps({"step": step, **finite}) + "\n")
            except OSError:
                os.truncate(self.path, end)  # no line without its end
                raise
        with writing(self.board_path):
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Wait until the lines are on the disk: with a checkpoint, so that a resumed run lacks none."""
        with writing(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush and close both files."""
        with writing(self.path):
            self.file.close()
        with writing(self.board_path):
            self.board.close()


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """Report an error that ended a thread, unless it is TensorBoard's: its next call raises the error again."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(args)


def _step_of(line: str) -> float:
    """The step of a metrics line; infinity for a line cut short by a kill."""
    try:
        return float(parse_json(line)["step"])
    except Exception:  # whatever a damaged line makes of it
        return float("inf")
