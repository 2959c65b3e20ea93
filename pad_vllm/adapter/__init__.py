"""The adapter on disk: what its folder holds, what is refused, load and save."""
