"""In the process that samples: the model loader, the logits processor, and the counts of what they did."""
