"""What PAD knows of vLLM: versions, names and internals. Imports nothing of PAD's other folders."""
