"""What comes out of a run beside the weights: held-out accuracy, the model card, the curves."""
