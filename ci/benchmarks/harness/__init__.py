"""What the benchmarks share: measuring, the machine's description, random vectors."""
