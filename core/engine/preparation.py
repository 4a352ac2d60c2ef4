"""The old features of a training run: found, or made when they are missing."""

import logging

from easydict import EasyDict

from core.data.open_dataset import ImageDataset, open_training_data
from core.embeddings.extraction import default_store_path, extract_embeddings
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.files import resolve
from core.models.encoder import load_encoder
from core.parallel.ranks import Ranks

__all__ = ["prepare_old_features"]

logger = logging.getLogger(__name__)


def prepare_old_features(config: EasyDict, data: ImageDataset, ranks: Ranks) -> EmbeddingStore:
    """The store of `config.old_model`'s embeddings of `data`, extracted over all ranks if missing. Collective."""
    if config.old_model is None:
        raise UserError("config key 'old_model' is not set: name the run folder, .pt or .onnx file of the old model")
    encoder = load_encoder(resolve(config.old_model), config.old_network, ranks.device)
    if encoder.embedding_size != config.embedding_size:
        raise UserError(
            f"the old model {config.old_model} has embeddings of size {encoder.embedding_size}, the new one "
            f"{config.embedding_size}: set embedding_size={encoder.embedding_size}, they must be comparable"
        )
    if encoder.image_size != data.image_size:
        data = open_training_data(config, encoder.image_size)
    logger.info("old model: %s (%s, fingerprint %s)", config.old_model, encoder.network, encoder.fingerprint[:12])
    path = default_store_path(encoder, data) if config.features is None else resolve(config.features)
    return extract_embeddings(encoder, data, path, ranks, config.batch_size, config.num_workers)
