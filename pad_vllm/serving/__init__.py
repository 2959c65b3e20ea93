"""PAD inside vLLM, a folder each for start-up checks, front end, worker and launch."""
