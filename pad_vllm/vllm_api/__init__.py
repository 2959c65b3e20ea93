"""All that PAD knows of vLLM: its versions, names and internals; patches/ has the methods that PAD wraps."""
