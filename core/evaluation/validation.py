"""Verification sets during training."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from core.errors import UserError
from core.evaluation.verification import read_verification_set, verification_accuracy
from core.files import require_file, resolve
from core.images.transforms import NORMALIZATIONS, normalize
from core.parallel.ranks import Ranks
from core.settings import Settings

__all__ = ["Validation"]


class Validation:
    """The sets `settings.val_targets` below `settings.rec_val`, shared out over the ranks. All are opened at once.

    A set may be named with its `.bin`.
    """

    def __init__(self, settings: Settings, ranks: Ranks):
        names = [name.removesuffix(".bin") for name in settings.val_targets]
        self.sets = {name: _file_of(name, settings.rec_val) for name in names}
        self.ranks, self.batch_size = ranks, settings.batch_size
        for path in self._own_sets().values():
            read_verification_set(path)  # a damaged file is reported now, not at the first test
        self.mean, self.std = NORMALIZATIONS[settings.normalization]

    def _own_sets(self) -> dict[int, Path]:
        """The sets that this rank tests, by their number."""
        return dict(list(enumerate(self.sets.values()))[self.ranks.rank :: self.ranks.world_size])

    def accuracies(self, backbone: nn.Module, image_size: int) -> dict[str, float]:
        """Accuracy of each set, the same on every rank. Collective. Leaves the backbone in training mode.

        Images of another size than the network's `image_size` are resized.
        """
        backbone.eval()
        results = torch.zeros(len(self.sets), dtype=torch.float64, device=self.ranks.device)
        for number, path in self._own_sets().items():
            embed = partial(self._embed, backbone)
            results[number] = verification_accuracy(embed, path, self.batch_size, image_size).accuracy
        distributed.all_reduce(results)
        backbone.train()
        return dict(zip(self.sets, results.tolist()))

    @torch.no_grad()
    def _embed(self, backbone: nn.Module, images: Tensor) -> Tensor:
        images = torch.as_tensor(images).to(self.ranks.device)
        return backbone(normalize(images, self.mean, self.std)).float()


def _file_of(name: str, folder: str | None) -> Path:
    """The set NAME.bin in `folder`, or beside the records or the set that `folder` names."""
    if folder is None:
        raise UserError(
            "config key 'val_targets' names verification sets but 'rec_val', their folder, is not set; in "
            "InsightFace's data sets it is the folder of the records"
        )
    path = resolve(folder)
    if not path.is_dir() and any(Path(f"{path}{suffix}").is_file() for suffix in ("", ".rec", ".bin")):
        path = path.parent
    return require_file(path / f"{name}.bin", "verification set")
