"""How vLLM is started with PAD: the command line of `vllm serve`, its program, an engine in this process."""
