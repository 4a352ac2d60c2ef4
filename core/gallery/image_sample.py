"""A sample for a plan from images with identities, embedded by both models."""

from pathlib import Path

from core.data.open_dataset import ImageDataset, open_dataset
from core.embeddings.extraction import default_store_path, extract_together
from core.errors import UserError
from core.gallery.sample import Sample
from core.models.encoder import Encoder
from core.parallel.ranks import Ranks

__all__ = ["image_sample"]


def image_sample(
    images: str | Path,
    old: Encoder,
    new: Encoder,
    ranks: Ranks,
    batch_size: int = 128,
    num_workers: int = 2,
    root: str | Path | None = None,
) -> tuple[Sample, ImageDataset]:
    """The sample of an image list or of records, and its images as the new model takes them; every rank must call this.

    Embeddings are kept below `features/`, so that another plan on the same sample embeds nothing again. `root`: folder
    that the paths of a list start from. `UserError` as of `open_dataset` and `extract_together`. Memory: the vectors.
    """
    data = open_dataset(images, new.image_size, root)
    works = [(encoder, default_store_path(encoder, data)) for encoder in (new, old)]
    if new.image_size == old.image_size:
        of_new, of_old = extract_together(works, data, ranks, batch_size, num_workers)
    else:
        others = open_dataset(images, old.image_size, root)
        (of_new,) = extract_together(works[:1], data, ranks, batch_size, num_workers)
        (of_old,) = extract_together([(old, default_store_path(old, others))], others, ranks, batch_size, num_workers)
    labels = data.labels()
    if labels is None:
        raise UserError(f"{images} does not say whom its images show: a sample needs identities")
    names = [data.image_name(row) for row in range(data.num_images)]
    return Sample.of(of_old.features, of_new.features, list(map(str, labels.tolist())), names), data
