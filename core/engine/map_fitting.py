"""The one way to fit maps: models, images, their embeddings by both models, a method's fit, run folders."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.data.open_dataset import ImageDataset, open_images
from core.embeddings.extraction import default_store_path, extract_together, require_writable_store
from core.engine.map_method import FittedMap, Fitting, MapMethod, Model, load_model
from core.engine.run_folder import RunFolder
from core.errors import UserError
from core.files import resolve
from core.models.maps.fit import MIN_PAIRS
from core.parallel.ranks import Ranks
from core.settings.map_settings import MapSettings, MapTrainingSettings

__all__ = ["fit_maps"]

logger = logging.getLogger(__name__)


def fit_maps(settings: MapSettings, method: MapMethod, method_name: str, ranks: Ranks) -> None:
    """Fit `method`'s maps on both models' embeddings of the images `settings.rec`, in the folder `settings.output`.

    The embeddings are made by all ranks where they are missing; the maps are fitted by the first rank alone, so that
    they are the same for any number of ranks. Mistakes are reported before anything is embedded, those that need no
    images first; only a checkpoint of another run is found after it. Every rank must call this.
    """
    direction = _direction(settings, method)
    _require_place(settings, method_name, ranks)
    loaded = [load_model(argument, ranks) for argument in settings.models]
    _require_other_models(loaded)
    run = Fitting(settings, method_name, direction, ranks, *loaded)
    _require_one_size(run)
    for model in run.models:
        if ranks.is_first and model.argument.features is not None:
            require_writable_store(resolve(model.argument.features))
        logger.info("%s model: %s (%s, size %d)", model.argument.which, model.path, model.encoder.network, model.size)
    method.check(run)
    opened = {size: open_images(settings, size) for size in dict.fromkeys(m.encoder.image_size for m in run.models)}
    images = next(iter(opened.values()))
    if images.num_images < MIN_PAIRS:
        raise UserError(f"{settings.rec} has {images.num_images} images: a map needs at least {MIN_PAIRS}")
    method.check_labels(run, images.labels())
    logger.info("data: %s, %d images of %d classes", settings.rec, images.num_images, images.num_classes)
    run = Fitting(settings, method_name, direction, ranks, *_with_features(run.models, opened, settings, ranks))
    if ranks.is_first:
        for name, fitted in method.fit(run).items():
            _save(run, settings.run_folder / name, fitted)


def _direction(settings: MapSettings, method: MapMethod) -> str | None:
    """The direction that the settings ask for, or the method's usual one; `UserError` if it cannot be had."""
    if settings.direction is None:
        return method.usual_direction(settings)
    if not method.directions:
        raise UserError(f"direction={settings.direction}: this method fits maps in both directions: leave it out")
    if settings.direction not in method.directions:
        raise UserError(f"direction={settings.direction}: this method's maps lead {method.directions[0]} alone")
    return settings.direction


def _require_place(settings: MapSettings, method_name: str, ranks: Ranks) -> None:
    """`UserError` unless the run folder can be written and holds no model, and no trained map that would be lost."""
    output = settings.run_folder
    folder, checkpoint = RunFolder(output), output / "checkpoint.pt"
    if (output / "model.pt").exists():
        raise UserError(f"output {output} is the run folder of a model: name another one")
    if isinstance(settings, MapTrainingSettings):
        if settings.resume and not checkpoint.exists() and list(output.glob("**/map.pt")):
            raise UserError(
                f"{output} holds a map but no checkpoint.pt to go on from: name another output, or replace it with "
                "resume=false"
            )
    # a method that trains two maps has its checkpoint in the folder above
    elif checkpoint.exists() or folder.read_config().get("method", method_name) != method_name:
        raise UserError(f"output {output} is the run folder of a training: name another one")
    if ranks.is_first:
        folder.require_writable()


def _require_other_models(models: Sequence[Model]) -> None:
    """`UserError` if two of the models are the same."""
    for number, model in enumerate(models):
        for other in models[:number]:
            if model.encoder.fingerprint == other.encoder.fingerprint:
                raise UserError(
                    f"{other.argument.which}_model {other.path} and {model.argument.which}_model {model.path} are the "
                    "same model: name two"
                )


def _require_one_size(run: Fitting) -> None:
    """`UserError` if the side model takes other images than the old one: the run folder embeds an image with both."""
    if run.side is not None and run.side.encoder.image_size != run.old.encoder.image_size:
        raise UserError(
            f"side_model {run.side.path} takes images of {run.side.encoder.image_size} pixels, old_model "
            f"{run.old.path} of {run.old.encoder.image_size}: name a side_model that takes those of the old model"
        )


def _with_features(
    models: Sequence[Model], opened: Mapping[int, ImageDataset], settings: MapSettings, ranks: Ranks
) -> list[Model]:
    """The models with their embeddings of the images `opened` in their sizes, made if they are missing. Collective.

    Models of one input size embed the same images, which are read once; images of another size are other pixels.
    """
    if len(opened) > 1:
        logger.info("images are read once for each size that the models take: %s pixels", ", ".join(map(str, opened)))
    paths = {model: _store_path(model, opened[model.encoder.image_size]) for model in models}
    if len(set(paths.values())) < len(models):
        raise UserError("two models' embeddings are to be kept in one folder: name another one for each")
    stores = {}
    for size, images in opened.items():
        alike = [model for model in models if model.encoder.image_size == size]
        wanted = [(model.encoder, paths[model]) for model in alike]
        made = extract_together(wanted, images, ranks, settings.batch_size, settings.num_workers)
        stores |= dict(zip(alike, made))
    return [replace(model, stored_features=stores[model]) for model in models]


def _store_path(model: Model, data: ImageDataset) -> Path:
    named = model.argument.features
    return default_store_path(model.encoder, data) if named is None else resolve(named)


def _save(run: Fitting, folder: Path, fitted: FittedMap) -> None:
    """Write a map's run folder."""
    RunFolder(folder).prepare(resume=True)
    fitted.map.save(folder, run.described(fitted.base, fitted.direction))
    logger.info("map from %s to %s: %s", fitted.map.source, fitted.map.target, folder)
