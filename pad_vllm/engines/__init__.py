"""Reward engines, one file or folder each. All implement RewardEngine in reward_engine.py."""
