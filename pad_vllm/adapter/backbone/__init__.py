"""Identifies an adapter's backbone: shape, weight fingerprint, embedding sample, supported model families."""
