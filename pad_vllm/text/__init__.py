"""Chat templates, preferences in prompts, and a base's tokens translated for a PersRM."""
