"""vLLM's versions, names and the internals that PAD uses; imports nothing of PAD's other folders."""
