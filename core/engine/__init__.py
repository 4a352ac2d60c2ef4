"""Training: the loop, the interface of a method, the old model, optimisation, checkpoints and logs."""
