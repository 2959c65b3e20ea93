"""In the API server: which requests are admitted, and which adapters they may name."""
