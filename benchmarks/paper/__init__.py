"""Peer methods, and what the paper has: its decoding loop, and generalised policy improvement."""
