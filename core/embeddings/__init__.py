"""Embeddings of a model on disk, joined to images by row, and the class statistics made from them."""
