"""In the worker that samples: the model loader, the logits processor and the counts of what it did."""
