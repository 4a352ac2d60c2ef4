"""The training loop and what it needs: distributed set-up, optimisation, checkpoints, logs."""
