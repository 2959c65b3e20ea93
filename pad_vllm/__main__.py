"""`python -m pad_vllm` is `pad-vllm`, for where the script is not on PATH."""

from pad_vllm.cli.app import main

main()
