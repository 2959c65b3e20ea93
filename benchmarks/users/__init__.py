"""Simulated users whose preferences nobody states: found from choices, a sentence or a dialogue."""
