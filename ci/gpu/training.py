"""The training loop on the device: its numbers against the CPU's, mixed precision, compilation, resume, waits.

Everything here is a run of the real `Trainer` on synthetic images in memory.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import core.engine.trainer
from ci.gpu.report import Error, Report, difference
from core.engine.trainer import Trainer
from core.files import ROOT
from core.images.transforms import AUGMENTATIONS
from core.parallel.ranks import Ranks
from core.program import load_method
from core.settings import Settings

TINY = {"network": "r18", "network_options": {"width": 16, "depth": 1}, "embedding_size": 32, "margin_scale": 16.0}
NOTHING = 1e-2
"""A tensor whose numbers are all below is compared with it: means of what a batch norm has centred are rounding."""
LOW_SCALE, HUGE_SCALE = 2.0**6, 2.0**60
"""Of the loss in fp16: at the low one nothing overflows, so that no step is skipped, at the huge one every step."""


class SyntheticImages:
    """`num_images` noisy images of `num_classes` colours, in memory."""

    def __init__(self, num_images: int, num_classes: int, image_size: int):
        rng = np.random.default_rng(0)
        self.num_images, self.num_classes, self.image_size = num_images, num_classes, image_size
        self.name = "synthetic"
        self._labels = np.arange(num_images) % num_classes
        colours = rng.integers(0, 256, (num_classes, 1, 1, 3))[self._labels]
        images = colours + rng.normal(0, 40, (num_images, image_size, image_size, 3))
        self.images = np.clip(images, 0, 255).astype(np.uint8)
        self.fingerprint = hashlib.sha256(self.images.tobytes()).hexdigest()

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.images[rows], "label": self._labels[rows]}

    def image_name(self, row: int) -> str:
        return f"image {row}"

    def labels(self) -> np.ndarray:
        return self._labels


class KeptMetrics:
    """In place of the files of a run: the logged values, a dict a step."""

    kept: list[dict[str, float]] = []

    def __init__(self, *arguments: Any):
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.kept.append({"step": step, **values})

    def flush(self) -> None:
        pass

    close = flush


@dataclass
class Outcome:
    """What a run ended with."""

    losses: list[float]
    weights: dict[str, Tensor]
    noted: dict[str, Any] = field(default_factory=dict)


class Check:
    """Runs of one device, each in a folder of its own below `folder`."""

    def __init__(self, folder: Path, device: torch.device, quick: bool):
        self.folder, self.device = folder, device
        self.image_size, self.batch_size, self.steps = (16, 8, 4) if quick else (64, 32, 8)

    def run(
        self,
        name: str,
        device: torch.device | None = None,
        around_step: Callable[[Trainer, dict[str, Any]], Any] = lambda trainer, noted: nullcontext(),
        num_classes: int = 10,
        **settings: Any,
    ) -> Outcome:
        """A run of `steps` steps in folder `name`; `around_step`: a context for each of them."""
        place, noted = device or self.device, {}

        class Watched(Trainer):
            def _train_step(self, micro_batches: list[dict[str, Tensor]]) -> None:
                with around_step(self, noted):
                    super()._train_step(micro_batches)

        data = SyntheticImages(self.steps * self.batch_size, num_classes, self.image_size)
        given = dict(
            rec="synthetic", output=str(self.folder / name), batch_size=self.batch_size, num_epoch=1, lr=0.02,
            frequent=1, num_workers=0, precision="fp32", augment=(), device=place.type,
        )  # fmt: skip
        method = load_method(ROOT / "old_model" / "train.py")
        KeptMetrics.kept = []
        with (
            patch.object(core.engine.trainer, "open_training_data", lambda settings: data),
            patch.object(core.engine.trainer, "MetricsLog", KeptMetrics),
        ):
            trainer = Watched(Settings(**(given | TINY | settings)), method, "old_model", Ranks(0, 1, place))
            trainer.train()
        modules = (trainer.backbone, trainer.method)
        tensors = {name: tensor for module in modules for name, tensor in module.state_dict().items()}
        weights = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        return Outcome([line["loss"] for line in KeptMetrics.kept], weights, noted)

    def against_cpu(self) -> dict[str, Error]:
        """float32 on the device against float32 on the CPU."""
        one, other = self.run("device"), self.run("cpu", torch.device("cpu"))
        return {
            "first loss": difference(one.losses[0], other.losses[0], 1e-4),
            "losses": difference(one.losses, other.losses, 1e-2),
            **_weights(one, other, 2e-2, NOTHING),
        }

    def half(self, precision: str) -> dict[str, Error]:
        """bf16 or fp16 against float32."""

        @contextmanager
        def scaled(trainer: Trainer, noted: dict[str, Any]) -> Iterator[None]:
            if trainer.step == 0 and precision == "fp16":
                _set_scale(trainer, LOW_SCALE)
            yield

        one = self.run(precision, precision=precision, around_step=scaled)
        other = self.run(f"single_{precision}")
        return {"losses": difference(one.losses, other.losses, 0.05)}

    def overflow(self) -> dict[str, Error]:
        """A scale at which the gradients overflow: that step changes no weight, and halves the scale."""

        @contextmanager
        def overflowing(trainer: Trainer, noted: dict[str, Any]) -> Iterator[None]:
            before = None
            if trainer.step == 2:
                _set_scale(trainer, HUGE_SCALE)
                before = [parameter.detach().clone() for parameter in trainer.backbone.parameters()]
            yield
            if before is not None:
                pairs = zip(before, trainer.backbone.parameters())
                noted["moved"] = sum((one - other.detach()).abs().sum().item() for one, other in pairs)
                noted["scale"] = trainer.scaler.get_scale()

        outcome = self.run("overflow", precision="fp16", around_step=overflowing)
        return {
            "weights moved": Error(outcome.noted["moved"], 0.0),
            "scale": difference(outcome.noted["scale"], HUGE_SCALE / 2, 0.0),
            "weights not finite": Error(sum((~t.isfinite()).sum().item() for t in outcome.weights.values()), 0.0),
        }

    def compiled(self, precision: str) -> dict[str, Error]:
        """The compiled backbone against eager."""
        one = self.run(f"compiled_{precision}", precision=precision, compile=True)
        other = self.run(f"eager_{precision}", precision=precision)
        return {"losses": difference(one.losses, other.losses, 1e-2 if precision == "fp32" else 0.05)}

    def resumed(self, precision: str) -> dict[str, Error]:
        """Killed in the middle and run again: the weights of the run that nothing stopped, to the bit."""

        @contextmanager
        def killed(trainer: Trainer, noted: dict[str, Any]) -> Iterator[None]:
            if trainer.step == self.steps // 2 + 1:
                raise KeyboardInterrupt
            yield

        settings = {"precision": precision, "augment": ("flip", "noise"), "checkpoint_steps": self.steps // 2}
        whole = self.run(f"whole_{precision}", **settings)
        try:
            self.run(f"parts_{precision}", around_step=killed, **settings)
        except KeyboardInterrupt:
            pass
        return _weights(self.run(f"parts_{precision}", **settings), whole, 0.0)

    def waits(self, precision: str, **settings: Any) -> dict[str, Error]:
        """A step, once warm, in which waiting for the GPU is an error."""

        @contextmanager
        def without_waiting(trainer: Trainer, noted: dict[str, Any]) -> Iterator[None]:
            strict = trainer.step >= 3
            if strict:
                torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                if strict:
                    torch.cuda.set_sync_debug_mode("default")

        name = "_".join(["waits", precision, *settings])
        num_classes = 2 * self.batch_size  # with fewer a sampled head waits for the number of positives
        settings |= {"augment": tuple(AUGMENTATIONS), "frequent": 1000}  # at log steps it may wait
        self.run(name, precision=precision, around_step=without_waiting, num_classes=num_classes, **settings)
        return {"waits": Error(0.0, 0.0)}


def _set_scale(trainer: Trainer, scale: float) -> None:
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": scale})


def _weights(one: Outcome, other: Outcome, allowed: float, floor: float = 0.0) -> dict[str, Error]:
    """The error of the tensor that differs most, by its name."""
    errors = {name: difference(one.weights[name], tensor, allowed, floor) for name, tensor in other.weights.items()}
    worst = max(errors, key=lambda name: errors[name].found)
    return {worst: errors[worst]}


@contextmanager
def repeatable() -> Iterator[None]:
    """Meanwhile kernels whose sums come in one order, as far as PyTorch has them."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


def check_training(report: Report, device: torch.device, quick: bool) -> None:
    """All runs; compilation takes a minute on a CPU and is left out of the quick check."""
    with TemporaryDirectory() as folder, repeatable():
        check = Check(Path(folder), device, quick)
        report.check("training", "float32 against the CPU", check.against_cpu, 15)
        for name, work in (
            ("waits, fp32", partial(check.waits, "fp32")),
            ("waits, bf16, sampled head", partial(check.waits, "bf16", sample_rate=0.8)),
            ("waits, fp16, AdamW", partial(check.waits, "fp16", optimizer="adamw")),
        ):
            if device.type == "cuda":
                report.check("training", name, work, 10)
            else:
                report.leave_out("training", name, "needs CUDA")
        for precision in ("bf16", "fp16"):
            report.check("training", precision, lambda p=precision: check.half(p), 10)
            report.check("training", f"resumed, {precision}", lambda p=precision: check.resumed(p), 10)
        report.check("training", "fp16, a step that overflows", check.overflow, 10)
        report.check("training", "resumed, fp32", lambda: check.resumed("fp32"), 10)
        for precision in ("fp32", "bf16"):
            if quick:
                report.leave_out("training", f"compiled, {precision}", "quick")
            else:
                report.check("training", f"compiled, {precision}", lambda p=precision: check.compiled(p), 60)
