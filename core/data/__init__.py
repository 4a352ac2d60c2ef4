"""Training data: record files, built-in data sets, samplers, loading and augmentation."""
