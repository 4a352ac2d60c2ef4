"""The old features of a training run: found, or made when they are missing."""

import logging

from core.data.open_dataset import ImageDataset, open_training_data
from core.embeddings.extraction import default_store_path, extract_features
from core.embeddings.store import FeatureStore
from core.errors import UserError
from core.files import resolve
from core.models.encoder import load_encoder
from core.parallel.ranks import Ranks
from core.settings import Settings

__all__ = ["prepare_old_features"]

logger = logging.getLogger(__name__)


def prepare_old_features(settings: Settings, data: ImageDataset, ranks: Ranks) -> FeatureStore:
    """The store of `settings.old_model`'s embeddings of `data`, extracted over all ranks if missing. Collective."""
    if settings.old_model is None:
        raise UserError("config key 'old_model' is not set: name the run folder, .pt or .onnx file of the old model")
    encoder = load_encoder(resolve(settings.old_model), settings.old_network, ranks.device)
    if encoder.embedding_size != settings.embedding_size:
        raise UserError(
            f"the old model {settings.old_model} has embeddings of size {encoder.embedding_size}, the new one "
            f"{settings.embedding_size}: set embedding_size={encoder.embedding_size}, they must be comparable"
        )
    if encoder.image_size != data.image_size:
        data = open_training_data(settings, encoder.image_size)
    logger.info("old model: %s (%s, fingerprint %s)", settings.old_model, encoder.network, encoder.fingerprint[:12])
    path = default_store_path(encoder, data) if settings.features is None else resolve(settings.features)
    return extract_features(encoder, data, path, ranks, settings.batch_size, settings.num_workers)
