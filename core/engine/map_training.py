"""Maps that are trained by gradient descent: what such a method adds, and the loop over the pairs.

The first rank trains, alone: batch statistics and the order of the pairs are then the same for any number of ranks.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from core.engine.map_method import FittedMap, Fitting, MapMethod
from core.engine.optimization import cosine
from core.engine.run_folder import LINE, MetricsLog, RunFolder
from core.errors import UserError
from core.models.maps import Map, Space
from core.models.maps.error_head import fit_error_head
from core.models.maps.modules import build_error_head
from core.models.maps.vectors import Pairs, row_blocks, unit_rows
from core.outputs import remove, replaced_atomically
from core.progress import Progress
from core.settings.map_settings import MapTrainingSettings

__all__ = ["PairBatch", "Spread", "TrainedMap", "finished_map"]

logger = logging.getLogger(__name__)
T = TypeVar("T", bound=MapTrainingSettings)
WITHOUT_EFFECT = {
    "output", "resume", "frequent", "device", "num_workers", "batch_size", "image_root", "rec", "direction",
    *(f"{which}_{what}" for which in ("old", "new", "side") for what in ("features", "model", "network")),
}  # fmt: skip
"""Settings that do not decide a map, or are compared by the fingerprints of what they name."""


@dataclass
class PairBatch:
    """B pairs, every embedding of length 1."""

    old: Tensor
    """float32 (B, D_o), each followed by its side information, also of length 1, if there is any."""
    new: Tensor
    """float32 (B, D_n)."""
    label: Tensor
    """int64 (B,)."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Vectors of some of the pairs, evenly spread over all."""

    vectors: np.ndarray
    """float32 (n, D)."""
    space: Space


class TrainedMap(MapMethod[T], nn.Module, Generic[T]):
    """A map whose networks are the module's parameters, trained by Adam, the models frozen: embeddings are all it sees.

    Subclasses build their networks in `setup`, compute their terms in `loss`, and hand over the maps in `maps`.
    """

    settings_type = MapTrainingSettings

    def setup(self, run: Fitting[T]) -> None:
        """Build what is trained. Called with torch's generator seeded."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, again if a run resumes there. Draws no numbers."""

    def loss(self, batch: PairBatch) -> dict[str, Tensor]:
        """Named scalar terms; their sum is minimised and each is logged under its name."""
        raise NotImplementedError

    def maps(self, run: Fitting[T]) -> dict[str, FittedMap]:
        """The trained maps by their folder below the run folder."""
        raise NotImplementedError

    def half_precision(self, run: Fitting[T]) -> bool:
        """Whether matrix products in `loss` are to be bfloat16."""
        return False

    def fit(self, run: Fitting[T]) -> dict[str, FittedMap]:
        """Train, or go on from the checkpoint in the run folder, and return the maps."""
        for model in run.models:
            _require_directions(model.features.features, model.argument.which)
        torch.manual_seed(run.settings.seed)
        self.setup(run)
        self.to(run.device)
        _Training(self, run).train()
        return self.maps(run)


class _Training:
    """The training of a map: `num_epoch` times all pairs, in steps of about `pairs_per_step`."""

    def __init__(self, method: TrainedMap, run: Fitting):
        self.method, self.run, self.settings = method, run, run.settings
        self.steps = max(1, run.num_pairs // run.settings.pairs_per_step)
        self.parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, run.settings.lr, weight_decay=run.settings.weight_decay, fused=True
        )
        self.folder = RunFolder(run.settings.run_folder)
        self.checkpoint = self.folder.path / "checkpoint.pt"
        self.half = method.half_precision(run)
        self.epoch = 0

    def train(self) -> None:
        """Train to the end of the last epoch; a checkpoint is written at the end of each."""
        settings, folder = self.settings, self.folder
        if settings.resume:
            self._resume()
        if self.epoch < settings.num_epoch:
            folder.require_room(self._room())
        if not settings.resume:
            remove(self.checkpoint)
        folder.prepare(settings.resume)
        if self.epoch == settings.num_epoch:
            logger.info("%s is already trained to the end of epoch %d", folder.path, self.epoch)
            return
        num_pairs = self.run.num_pairs
        logger.info("training: %d epochs of %d steps, %d pairs", settings.num_epoch, self.steps, num_pairs)
        metrics = MetricsLog(folder, self.epoch * self.steps)
        total, done = settings.num_epoch * num_pairs, self.epoch * num_pairs
        with Progress("training the map", total, unit="pairs", initial=done) as bar:
            for epoch in range(self.epoch, settings.num_epoch):
                self._train_epoch(epoch, metrics, bar)
                self.epoch = epoch + 1
                metrics.flush()
                self._save()
        metrics.close()

    def _room(self) -> int:
        """About the bytes that the run folder still takes: the maps, and two checkpoints while one is replaced."""
        weights = sum(tensor.nbytes for tensor in self.method.state_dict().values())
        trained = sum(parameter.nbytes for parameter in self.parameters)
        steps = self.settings.num_epoch * self.steps
        there = self.checkpoint.stat().st_size if self.checkpoint.exists() else 0
        return 2 * (weights + 2 * trained) + weights + steps // self.settings.frequent * LINE - there

    def _train_epoch(self, epoch: int, metrics: MetricsLog, bar: Progress) -> None:
        self.method.start_epoch(epoch)
        window: dict[str, Tensor] = {}
        first = done = epoch * self.steps
        for step, batch in enumerate(self._batches(epoch), first + 1):
            rate = self._set_rate((step - 1) / self.steps)
            for name, value in self._step(batch).items():
                window[name] = window.get(name, 0) + value
            if step % self.settings.frequent == 0 or step == first + self.steps:
                means = {name: float(value) / (step - done) for name, value in window.items()}
                loss = sum(means.values())
                self._require_finite(loss, step)
                terms = {f"loss/{name}": value for name, value in means.items()}
                metrics.write(step, {"epoch": step / self.steps, "loss": loss, **terms, "lr": rate})
                bar.update(0, epoch=f"{step / self.steps:.2f}", loss=f"{loss:.4f}")
                window, done = {}, step
            bar.update(len(batch.label))

    def _set_rate(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs: linear warm-up, then a cosine."""
        settings = self.settings
        if epoch < settings.warmup_epoch:
            rate = settings.lr * (epoch + 1 / self.steps) / settings.warmup_epoch
        else:
            rate = settings.lr * cosine((epoch - settings.warmup_epoch) / (settings.num_epoch - settings.warmup_epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _step(self, batch: PairBatch) -> dict[str, Tensor]:
        with torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.half):
            terms = self.method.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def _require_finite(self, loss: float, step: int) -> None:
        if not np.isfinite(loss):
            raise UserError(f"the loss is not finite at step {step} of {self.folder.path}: lower lr, and run it again")

    def _batches(self, epoch: int) -> Iterator[PairBatch]:
        """All pairs in an order drawn from (seed, epoch); the next batch is read while one is trained on."""
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.run.num_pairs)
        parts = [np.sort(part) for part in np.array_split(order, self.steps)]  # the order in which a file is read
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._read, parts[0])
            for part in [*parts[1:], None]:
                tensors = following.result()
                if part is not None:
                    following = reader.submit(self._read, part)
                yield PairBatch(*(tensor.to(self.run.device, non_blocking=True) for tensor in tensors))

    def _read(self, rows: np.ndarray) -> list[Tensor]:
        """A batch in host memory; for a GPU in pages that stay there, so that no step waits until it is copied."""
        labels = np.asarray(self.run.old.features.labels()[rows])
        arrays = self.run.unit_sources(rows), self.run.new.unit_features(rows), labels
        tensors = [torch.from_numpy(array) for array in arrays]
        return [tensor.pin_memory() for tensor in tensors] if self.run.device.type == "cuda" else tensors

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint that it goes on from: all that decides its maps."""
        settings = {key: value for key, value in asdict(self.settings).items() if key not in WITHOUT_EFFECT}
        models = {f"{model.argument.which}_model": model.encoder.fingerprint for model in self.run.models}
        data = self.run.old.features.info.data_fingerprint
        return json.loads(json.dumps({"method": self.run.method_name, "rec": data, **models, **settings}, default=list))

    def _resume(self) -> None:
        """Take up the checkpoint in the run folder, if there is one; `UserError` if it is of another run."""
        if not self.checkpoint.exists():
            return
        try:
            saved = torch.load(self.checkpoint, map_location=self.run.device, weights_only=True)
            identity, epoch = dict(json.loads(saved["identity"])), int(saved["epoch"])
        except Exception as error:  # of many kinds, for a damaged file
            raise UserError(
                f"{self.checkpoint} is damaged ({type(error).__name__}): start over with resume=false"
            ) from error
        for key, value in self._identity().items():
            if identity.get(key) != value:
                raise UserError(
                    f"{self.folder.path} holds a run with another {key} ({identity.get(key)!r}, now {value!r}): name "
                    "another output, or start over with resume=false"
                )
        try:
            self.method.load_state_dict(saved["method"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except Exception as error:  # of many kinds, for what is not as it was saved
            raise UserError(
                f"{self.checkpoint} is damaged ({type(error).__name__}): start over with resume=false"
            ) from error
        self.epoch = epoch
        logger.info("going on from %s (epoch %d)", self.checkpoint, self.epoch)

    def _save(self) -> None:
        state = {
            "identity": json.dumps(self._identity()),
            "epoch": self.epoch,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with replaced_atomically(self.checkpoint) as temporary:
            torch.save(state, temporary)


def _require_directions(features: np.ndarray, which: str) -> None:
    """`UserError` with the number of the first embedding that has no direction."""
    for rows in row_blocks(len(features)):
        unit_rows(
            features, rows, f"{which} embeddings", np.empty((rows.stop - rows.start, features.shape[1]), np.float32)
        )


def finished_map(
    run: Fitting, kind: str, module: nn.Module, options: Mapping[str, Any], source: Spread, target: Spread
) -> Map:
    """The map that a trained network is, with a prediction of its errors unless the network predicts them itself.

    `source` and `target` are unit vectors of the rows `run.spread_rows()`, and their spaces.
    """
    module = module.cpu().eval().requires_grad_(False)
    spaces = source.space, target.space
    head = None
    if not hasattr(module, "log_error"):
        pairs = Pairs(source.vectors, target.vectors, *spaces)
        head = build_error_head(fit_error_head(pairs, module), source.space.size)
    return Map(kind, *spaces, module, run.num_pairs, dict(options), error_head=head)
