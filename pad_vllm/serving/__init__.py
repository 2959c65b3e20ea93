"""PAD inside vLLM, a folder for each process: start-up checks, front end, worker, and launch."""
