"""How it is trained: stages, checkpoints, batches, what is told."""
