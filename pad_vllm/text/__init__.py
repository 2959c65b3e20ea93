"""The reward model's tokens kept in step with the base's text, whatever the two tokenizers are."""
