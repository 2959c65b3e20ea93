"""Reward engines, one file or folder each, behind the contract of base.py."""
