"""Step times of guided and plain vLLM: by engine, fork depth and number of preferences, and under load."""
