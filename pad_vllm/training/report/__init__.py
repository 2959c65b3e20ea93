"""What came out: held-out figures, the model card, the curves."""
