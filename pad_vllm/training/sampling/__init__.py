"""Training data made from a model: responses sampled, scores added to them."""
