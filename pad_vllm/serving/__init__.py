"""What puts PAD together inside vLLM: admission, loading, the logits processor, `vllm serve`."""
