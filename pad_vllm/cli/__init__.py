"""The `pad-vllm` program: one file per command, and the options and error reports that they share."""
