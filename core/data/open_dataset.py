"""Training images from an image list, a record file or shards, whichever `rec` names."""

from pathlib import Path
from typing import Protocol, TypeAlias

from core.data.lists import ListDataset
from core.data.record_files import record_prefix
from core.data.records import RecordDataset
from core.data.shard_index import shard_index_of
from core.data.shards import ShardDataset
from core.errors import UserError
from core.files import resolve
from core.settings import Settings

__all__ = ["BAD_IMAGES", "ImageDataset", "is_list", "open_dataset", "open_images", "open_training_data"]

ImageDataset: TypeAlias = RecordDataset | ListDataset | ShardDataset
BAD_IMAGES = ("error", "skip")
"""What to do about missing and undecodable files of a list, and undecodable images of shards."""
LIST_SUFFIXES = (".txt", ".lst", ".csv", ".tsv")


def is_list(rec: str | Path) -> bool:
    """True for an image list (by its suffix, or another file that is no record file, shard or index), else False."""
    path = Path(rec)
    others = (".rec", ".idx", ".tar", ".npz")
    return path.suffix.lower() in LIST_SUFFIXES or (path.is_file() and path.suffix not in others)


def open_dataset(
    rec: str | Path, image_size: int | None = None, root: str | Path | None = None, skip_bad: bool = False
) -> ImageDataset:
    """The images that `rec` names: an image list, shards by their folder or index, or records by their prefix, one of
    their files or their folder.

    `root` is for lists, `skip_bad` for lists and shards. Raises `UserError` as `ListDataset`, `shard_index_of`,
    `ShardDataset`, `record_prefix` and `RecordDataset` do.
    """
    if is_list(rec):
        return ListDataset(rec, root, image_size, skip_bad)
    index = shard_index_of(rec)
    if index is not None:
        return ShardDataset(index, image_size, skip_bad)
    return RecordDataset(record_prefix(rec), image_size)


class ImageSettings(Protocol):
    """The settings that say which images a program reads."""

    @property
    def rec(self) -> str | None: ...  # noqa: D102
    @property
    def image_root(self) -> str | None: ...  # noqa: D102
    @property
    def bad_images(self) -> str: ...  # noqa: D102


def open_images(settings: ImageSettings, image_size: int | None) -> ImageDataset:
    """The images that `rec`, `image_root` and `bad_images` describe, of a size."""
    if settings.rec is None:
        raise UserError("config key 'rec' is not set: name the training images, for example rec=datasets/glyphs/train")
    root = None if settings.image_root is None else resolve(settings.image_root)
    return open_dataset(resolve(settings.rec), image_size, root, settings.bad_images == "skip")


def open_training_data(settings: Settings, image_size: int | None = None) -> ImageDataset:
    """The images that `rec`, `image_root`, `bad_images` and `image_size` (unless another is given) describe."""
    return open_images(settings, image_size or settings.image_size)
