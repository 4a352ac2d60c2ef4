"""Any model argument: weights on disk, encoders, ONNX export."""
