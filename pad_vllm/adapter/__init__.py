"""The adapter folder on disk: its format, the checks that refuse a bad one, loading, saving and merging."""
