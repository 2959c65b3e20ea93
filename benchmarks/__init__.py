"""Scripts that measure pad_vllm, run from the root of a checkout: `python -m benchmarks.quality.mixes`."""
