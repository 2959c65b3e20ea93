"""Does guidance steer, and is the text still text? `pad-vllm evaluate --steering`."""
