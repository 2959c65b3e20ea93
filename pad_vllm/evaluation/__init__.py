"""What guided text is worth: scorers, win rates, fluency. Knows nothing of vLLM or of training."""
