"""`pad-vllm`: one file a command."""
