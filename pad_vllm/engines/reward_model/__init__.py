"""The PersRM as a model of its own, with its own KV cache: what `resident` and `ray` run. Without vLLM."""
