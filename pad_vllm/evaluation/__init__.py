"""Judges text: scorers, win rates, repetition, perplexity. Knows nothing of vLLM or of training."""
