"""Images as arrays: decoding, alignment, network input."""
