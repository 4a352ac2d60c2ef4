"""The one training loop: data, backbone, a method's loss, optimisation, logs, checkpoints."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.backbones import build_backbone, require_backbone
from core.backbones.onednn import avoid_unsafe_kernels
from core.data.open_dataset import open_training_data
from core.data.samplers import TrainSampler
from core.engine.checkpoint import Position, TrainingState, latest_checkpoint, read_position, remove_leftovers
from core.engine.compilation import compiling
from core.engine.initial_weights import INITIAL_WEIGHTS, load_initial_backbone, open_initial_classes
from core.engine.method import Batch, Method, Run
from core.engine.old_model import load_old_model, open_old_features
from core.engine.optimization import LossScaler, build_optimizer, learning_rate
from core.engine.precision import PRECISIONS, choose_precision, float32_products
from core.engine.run_folder import LINE, MetricsLog, RunFolder, code_version
from core.engine.window import StepWindow
from core.errors import UserError
from core.files import resolve
from core.heads import PartialFC
from core.heads.build import build_margin
from core.heads.partial_fc import require_filter
from core.images.device_decoding import DeviceDecoder, EncodedReader
from core.images.loader import load_batches
from core.images.transforms import TrainTransform
from core.models.map_run import is_map_run, model_paths
from core.models.weights import fingerprint
from core.outputs import sweep
from core.parallel.ranks import Ranks, average_gradients, share_buffers
from core.progress import Progress
from core.settings import Settings

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)
USUAL_SIZE = 112
"""Side in pixels of the input that a network is tried with before the images are known."""


class Validation(Protocol):
    """Tests during training; made from the settings and the ranks."""

    @property
    def sets(self) -> Mapping[str, object]:
        """The test sets by name; without any, `accuracies` is never asked for."""

    def accuracies(self, backbone: nn.Module, image_size: int) -> dict[str, float]:
        """Accuracy of each set, the same on every rank. Collective. Leaves the backbone in training mode."""


class Trainer:
    """Trains `settings.network` with `method`'s loss on `settings.rec`, in the run folder `settings.output`.

    Exchanged per step: DDP's gradient buckets and buffers, what the method's loss gathers, the gradients of its small
    parameters, and at log steps the logged terms. Checkpoints hold everything that a resumed run needs to end with the
    weights of an uninterrupted one.

    Mistakes are reported before the first step, and in an order that lets nobody wait for one: those in the settings,
    in the run folder, in the old model and the verification sets, and then those in the images.
    """

    def __init__(
        self,
        settings: Settings,
        method: Method,
        method_name: str,
        ranks: Ranks,
        make_validation: Callable[[Settings, Ranks], Validation] | None = None,
    ):
        settings = replace(settings, network=require_backbone(settings.network))
        self.settings, self.method, self.method_name, self.ranks = settings, method, method_name, ranks
        self.transform = TrainTransform(settings.normalization, settings.augment)
        self._check_settings()
        self.folder = RunFolder(settings.run_folder)
        self.checkpoint = self._find_checkpoint()
        if ranks.is_first:
            self.folder.require_writable()
        encoder = self.old_model = None
        if method.uses_old_model:
            encoder, self.old_model = load_old_model(settings, ranks)
            self.old_model.require(method.needs(settings))
        self.validation = make_validation(settings, ranks) if make_validation is not None else None
        self.data = open_training_data(settings)
        self._compare_counts()
        logger.info("data: %s, %d images of %d classes", settings.rec, self.data.num_images, self.data.num_classes)
        self.sampler = TrainSampler(
            self.data.num_images,
            settings.batch_size * settings.gradient_acc,
            ranks.rank,
            ranks.world_size,
            settings.seed,
        )
        self._build_backbone()
        self.precision = self._choose_precision()
        self.initial_classes = None
        if settings.head_weights is not None and self.checkpoint is None:
            self.initial_classes = open_initial_classes(settings, self.data.num_classes)
        if encoder is not None and self.old_model is not None:
            features = open_old_features(encoder, settings, self.data, ranks)
            self.old_model = replace(self.old_model, stored_features=features)
        self._build(Run(settings, self.data, ranks, self.old_model))

    def _check_settings(self) -> None:
        """`UserError` for settings that exclude each other, or a network that cannot be built: no images are read."""
        settings = self.settings
        margin = build_margin(settings.loss, settings.margin_scale, settings.margin)
        require_filter(margin, settings.interclass_filtering_threshold or None)
        if settings.old_model is not None and settings.run_folder in model_paths(resolve(settings.old_model)):
            raise UserError(f"output {settings.run_folder} is the old model's own run folder: name another one")
        if "image_size" in settings.network_options:
            raise UserError("network_options.image_size: set the config key 'image_size', which resizes the images too")
        options = {key: value for key, value in settings.network_options.items() if key != "pretrained"}
        options["image_size"] = settings.image_size or USUAL_SIZE
        with torch.device("meta"):  # names and shapes alone
            network = build_backbone(settings.network, settings.embedding_size, **options)
        if settings.batch_size == 1 and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
            raise UserError(
                f"batch_size is 1: {settings.network} normalises its embeddings over a batch; set 2 or more"
            )

    def _compare_counts(self) -> None:
        """`UserError` unless the images have the numbers that the settings expect, if they do."""
        settings, data = self.settings, self.data
        counts = {
            "num_classes": (settings.num_classes, data.num_classes),
            "num_image": (settings.num_image, data.num_images),
        }
        for name, (expected, found) in counts.items():
            if expected not in (None, found):
                raise UserError(
                    f"config key {name!r} is {expected}, but {settings.rec} has {found}: name the images that are "
                    "meant, or leave the key out: the number is read from them"
                )

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, if any; `UserError` if the run folder is another's."""
        if is_map_run(self.folder.path):
            raise UserError(f"output {self.folder.path} is the run folder of a map: name another one")
        if not self.settings.resume:
            return None
        checkpoint = latest_checkpoint(self.folder.checkpoints)
        if checkpoint is None and (self.folder.path / "model.pt").exists():
            raise UserError(
                f"{self.folder.path} holds a trained model but no checkpoint to resume from: name another output, or "
                "overwrite it with resume=false"
            )
        return checkpoint

    def _build_backbone(self) -> None:
        settings = self.settings
        options = dict(settings.network_options)
        if self.checkpoint is not None:  # it has the weights; the initial ones may no longer exist
            options.pop("pretrained", None)
        torch.manual_seed(settings.seed)  # the same first weights on every rank
        if settings.weights is not None and self.checkpoint is None:
            self.backbone = load_initial_backbone(settings, self.data.image_size)
        else:
            self.backbone = build_backbone(
                settings.network, settings.embedding_size, image_size=self.data.image_size, **options
            )
        self.backbone.to(self.ranks.device).to(memory_format=torch.channels_last)
        if self.ranks.device.type == "cpu":
            avoid_unsafe_kernels(self.backbone)

    def _choose_precision(self) -> str:
        """A name of `PRECISIONS`. A run that is resumed with precision=auto keeps its own; it was fp32 on CPUs once."""
        before = None
        if self.checkpoint is not None:
            once = "fp32" if self.ranks.device.type == "cpu" else None
            before = self.folder.read_config().get("precision_used", once)
        return choose_precision(self.settings.precision, self.backbone, self.data.image_size, self.ranks, before)

    def _build(self, run: Run) -> None:
        settings, ranks = self.settings, self.ranks
        self.method.setup(run)
        self.method.to(ranks.device)
        if self.initial_classes is not None:
            self.initial_classes.load_into(self.method.classifier)
        self.optimizer = build_optimizer(settings, [*self.backbone.parameters(), *self.method.parameters()])
        self.scaler = LossScaler(ranks.device.type, enabled=self.precision == "fp16")
        self.state = TrainingState(self.backbone, self.method, self.optimizer, ranks)
        shards = self.method.sharded_parameters()
        self.sampled_heads = [m for m in self.method.modules() if isinstance(m, PartialFC) and m.sample_rate < 1.0]
        self.averaged = [p for p in self.method.parameters() if p.requires_grad and p not in shards]
        torch.manual_seed(settings.seed + 1 + ranks.rank)  # from here on every rank draws its own numbers
        self.step, self.epoch, self.images_in_epoch = 0, 0, 0
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        forward = torch.compile(self.backbone) if settings.compile else self.backbone
        device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        self.model = DistributedDataParallel(forward, device_ids=device_ids, gradient_as_bucket_view=True)
        if ranks.world_size > 1:
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        """Let DDP find its final gradient buckets, which it lays out anew after the first backward pass of a process.

        On three or more ranks the order in which gradients are added depends on the buckets: the first step of a
        resumed run would differ from the same step of an uninterrupted one in the last bits. Leaves weights and
        statistics unchanged. Nothing is compiled: of batches of 1 and of B images the compiler would make graphs for
        batches of any size, which are slower.
        """
        size = self.data.image_size
        self.backbone.eval()
        with torch.compiler.set_stance("force_eager"):
            self.model(torch.zeros(1, 3, size, size, device=self.ranks.device)).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.backbone.train()

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint that it resumes from, as JSON has it.

        Whatever decides its tensors, and whatever would make it another experiment.
        """
        settings = self.settings
        identity = {
            "method": self.method_name,
            "network": settings.network,
            "network_options": dict(settings.network_options),
            "embedding_size": settings.embedding_size,
            "image_size": self.data.image_size,
            "optimizer": settings.optimizer,
            "momentum": settings.momentum > 0,
            "loss": settings.loss,
            "classifier_bias": settings.classifier_bias,
            "seed": settings.seed,
            "rec": self.data.fingerprint,
            "old_model": self.old_model.fingerprint if self.old_model else None,
        }
        return json.loads(json.dumps(identity))

    def _resume(self, checkpoint: Path) -> None:
        position = read_position(checkpoint)
        for key, value in self._identity().items():
            saved = position.identity.get(key)
            if saved != value:
                raise UserError(
                    f"{self.folder.path} holds a run with another {key} ({saved!r}, now {value!r}): name another "
                    "output, or start over with resume=false"
                )
        changed = self.folder.changed_settings(self.settings)
        if changed:
            logger.warning("resuming with other settings than before: %s", ", ".join(changed))
        if self.settings.weights is not None or self.settings.head_weights is not None:
            logger.info("weights and head_weights are not read: the run goes on from its checkpoint")
        self.state.load(checkpoint, position, self.settings.seed)
        if self.scaler.is_enabled() and position.scaler:
            self.scaler.load_state_dict(position.scaler)
        self.epoch, self.step = position.epoch, position.step
        steps_done = position.images_in_epoch // self.sampler.images_per_step
        self.images_in_epoch = steps_done * self.sampler.images_per_step
        if self.images_in_epoch // self.sampler.images_per_step >= self.sampler.steps_per_epoch:
            self.epoch, self.images_in_epoch = self.epoch + 1, 0
        logger.info("resuming from %s (epoch %d)", checkpoint, self.epoch)

    def train(self) -> None:
        """Train to the end of the last epoch, writing checkpoints and `model.pt` along the way."""
        settings = self.settings
        if self.ranks.is_first:
            sweep(self.folder.path)
            remove_leftovers(self.folder.checkpoints)
        if self.epoch >= settings.num_epoch:
            logger.info("%s is already trained to the end of epoch %d", self.folder.path, settings.num_epoch)
            self._write_classifier()
            if self.ranks.is_first and not self.folder.holds_model(self.backbone):  # killed just before it was written
                self.folder.write_model(self.backbone)
            return
        if self.ranks.is_first:
            self.folder.require_room(self._room())
            self.folder.prepare(settings.resume)
            self.folder.write_config(self._description())
        metrics = MetricsLog(self.folder, self.step) if self.ranks.is_first else None
        steps, images = self.sampler.steps_per_epoch, self.sampler.images_per_step
        done = self.epoch * steps * images + self.images_in_epoch
        logger.info(
            "training %s: %d epochs of %d steps of %d images", self.folder.path, settings.num_epoch, steps, images
        )
        self.window = StepWindow(self.ranks)
        batches = self._batches()
        with Progress(
            "training", settings.num_epoch * steps * images, quiet=not self.ranks.is_first, initial=done
        ) as bar:
            while self.epoch < settings.num_epoch:
                if self.images_in_epoch == 0:
                    self.method.start_epoch(self.epoch, self.backbone)
                self._train_step([next(batches) for _ in range(settings.gradient_acc)])
                self.step += 1
                self.images_in_epoch += images
                epoch_ends = self.images_in_epoch >= steps * images
                last = epoch_ends and self.epoch + 1 == settings.num_epoch
                if self.step % settings.frequent == 0 or last:
                    self._log(metrics, bar)
                if epoch_ends:
                    self.epoch, self.images_in_epoch = self.epoch + 1, 0
                if epoch_ends or self.step % settings.checkpoint_steps == 0:
                    if metrics is not None:
                        metrics.flush()
                    self._save(write_model=epoch_ends)
                if self.validation is not None and self.validation.sets and (self.step % settings.verbose == 0 or last):
                    self._validate(self.validation, metrics)
        if metrics is not None:
            metrics.close()
        logger.info("trained: %s", self.folder.path / "model.pt")

    def _room(self) -> int:
        """About the bytes that the run folder takes at most."""
        settings = self.settings
        steps = settings.num_epoch * self.sampler.steps_per_epoch
        saves = settings.num_epoch + steps // settings.checkpoint_steps
        return self.state.room(saves) + steps // settings.frequent * LINE

    def _description(self) -> dict[str, Any]:
        derived = {
            "method": self.method_name,
            "image_size": self.data.image_size,
            "precision_used": self.precision,
            "num_images": self.data.num_images,
            "num_classes": self.data.num_classes,
            "data_fingerprint": self.data.fingerprint,
            "old_model_fingerprint": self.old_model.fingerprint if self.old_model else None,
            "old_model_preprocessing": self.old_model.preprocessing if self.old_model else None,
            "world_size": self.ranks.world_size,
            "version": code_version(),
            "torch_version": torch.__version__,
        }
        return {**asdict(self.settings), **derived, **self._initial_weights()}

    def _initial_weights(self) -> dict[str, str | None]:
        """What the training began with, given weights and their fingerprints; called before the first step."""
        if self.checkpoint is not None:
            before = self.folder.read_config()
            return {key: before.get(key) for key in INITIAL_WEIGHTS}
        settings, classes = self.settings, self.initial_classes
        values = (
            settings.weights,
            fingerprint(self.backbone.state_dict()) if settings.weights is not None else None,
            settings.head_weights,
            fingerprint(classes.tensors()) if classes is not None else None,
        )
        return dict(zip(INITIAL_WEIGHTS, values))

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Micro-batches from the present position to the end of the training, by one set of workers."""

        def rows() -> Iterator[np.ndarray]:
            first_step = self.images_in_epoch // self.sampler.images_per_step
            for epoch in range(self.epoch, self.settings.num_epoch):
                for step_rows in self.sampler.epoch(epoch, first_step):
                    yield from step_rows.reshape(self.settings.gradient_acc, self.settings.batch_size)
                first_step = 0

        columns = {"old_embedding": self.old_model.features} if self.old_model else {}
        on_gpu = self.ranks.device.type == "cuda"
        decodes = self.settings.decode_on == "device"
        reader = EncodedReader(self.data) if decodes else self.data
        batches = load_batches(reader, rows(), self.settings.num_workers, columns, pin_memory=on_gpu, prefetch=4)
        return map(DeviceDecoder(self.data, self.ranks.device), batches) if decodes else batches

    def _train_step(self, micro_batches: list[dict[str, Tensor]]) -> None:
        settings = self.settings
        epoch = self.epoch + self.images_in_epoch / (self.sampler.steps_per_epoch * self.sampler.images_per_step)
        self.rate = learning_rate(settings, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        for head in self.sampled_heads:
            sampled = settings.sampled_epochs is None or self.epoch < settings.sampled_epochs
            head.sample_rate = settings.sample_rate if sampled else 1.0
        finite = torch.ones((), dtype=torch.bool, device=self.ranks.device)
        logged: dict[str, Tensor] = {}
        for number, loaded in enumerate(micro_batches, 1):
            exchange = nullcontext() if number == len(micro_batches) else self.model.no_sync()
            with exchange, compiling(settings.compile), float32_products(self.ranks.device, self.precision):
                terms = self._forward(loaded, epoch)
                total = torch.stack(list(terms.values())).sum() / settings.gradient_acc
                self.scaler.scale(total).backward()
            finite &= torch.isfinite(total.detach())
            for name, value in terms.items():
                logged[name] = logged.get(name, 0) + value.detach() / settings.gradient_acc
        average_gradients(self.averaged)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.backbone.parameters(), settings.clip_norm or math.inf)
        if not self.scaler.is_enabled():  # with fp16 an overflow here only skips the step and lowers the scale
            finite &= torch.isfinite(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.window.add(self.step + 1, {**logged, "grad_norm": norm}, finite)

    def _forward(self, loaded: dict[str, Tensor], epoch: float) -> dict[str, Tensor]:
        """The method's loss terms for one micro-batch from the loader."""
        moved = {name: tensor.to(self.ranks.device, non_blocking=True) for name, tensor in loaded.items()}
        moved["image"] = self.transform(moved["image"])
        half = PRECISIONS[self.precision]
        with torch.autocast(self.ranks.device.type, half, enabled=half is not None):
            embedding = self.model(moved["image"])
        if self.old_model is None:
            moved["old_embedding"] = embedding.new_empty(len(embedding), 0)
        progress = epoch / self.settings.num_epoch
        return self.method.loss(Batch(**moved, epoch=int(epoch), progress=progress, embedding=embedding.float()))

    def _require_finite(self) -> None:
        """`UserError` with the first step, on any rank, whose loss or gradient was not finite. Collective."""
        bad = self.window.first_bad_step()
        if bad is None:
            return
        good = latest_checkpoint(self.folder.checkpoints)
        raise UserError(
            f"the loss or its gradient is not finite at step {bad} of {self.folder.path}; the last good "
            f"checkpoint is {good or 'none'}: lower lr or margin_scale, or set precision=fp32, and run again to resume"
        )

    def _log(self, metrics: MetricsLog | None, bar: Progress) -> None:
        """Means since the last log line, over all ranks, to the progress display and the metrics files. Collective."""
        self._require_finite()
        values = self.window.means()
        if metrics is not None:
            norm = values.pop("grad_norm")
            loss = sum(values.values())
            epoch = self.epoch + self.images_in_epoch / (self.sampler.steps_per_epoch * self.sampler.images_per_step)
            logged = {"epoch": epoch, "loss": loss, **{f"loss/{name}": value for name, value in values.items()}}
            logged |= {
                "lr": self.rate,
                "grad_norm": norm,
                "images_per_second": self.window.images_per_second(self.sampler.images_per_step),
            }
            if self.scaler.is_enabled():
                logged["loss_scale"] = self.scaler.get_scale()
            metrics.write(self.step, logged)
            images = self.window.num_steps * self.sampler.images_per_step
            bar.update(images, epoch=f"{epoch:.2f}", loss=f"{loss:.3f}", lr=f"{self.rate:.4f}")
        self.window = StepWindow(self.ranks)

    def _save(self, write_model: bool) -> None:
        """Write a checkpoint, and `model.pt` if asked for, unless a step was not finite. Collective."""
        self._require_finite()
        for module in (self.backbone, self.method):
            share_buffers(module)
        position = Position(
            self.step,
            self.epoch,
            self.images_in_epoch,
            self.ranks.world_size,
            self._identity(),
            self.scaler.state_dict(),
        )
        self.state.save(self.folder.checkpoints, position)
        if write_model:
            self._write_classifier()
            if self.ranks.is_first:
                self.folder.write_model(self.backbone)

    def _write_classifier(self) -> None:
        """Write `classifier.pt`, on the first rank. Collective."""
        tensors = self.method.classifier.whole()
        if tensors is not None:
            self.folder.write_classifier(tensors)

    def _validate(self, validation: Validation, metrics: MetricsLog | None) -> None:
        share_buffers(self.backbone)
        accuracies = validation.accuracies(self.backbone, self.data.image_size)
        for name, accuracy in accuracies.items():
            logger.info("step %d: %s accuracy %.4f", self.step, name, accuracy)
        if metrics is not None:
            metrics.write(self.step, {f"accuracy/{name}": value for name, value in accuracies.items()})
