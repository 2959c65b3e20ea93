"""The training loop: stages, batches, checkpoints, the log."""
