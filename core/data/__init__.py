"""Training data: record files, image lists, splits, samplers, the loader."""
