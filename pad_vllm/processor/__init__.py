"""The logits processor that vLLM runs, and its per-request state."""
