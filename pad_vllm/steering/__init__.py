"""Measures what guidance does to answers: does it steer, and is the text still fluent? `pad-vllm steer`."""
