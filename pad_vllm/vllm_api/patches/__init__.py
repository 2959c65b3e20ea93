"""Every method of vLLM's that PAD replaces or wraps, a file for each place."""
