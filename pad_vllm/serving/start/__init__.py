"""Before an engine starts: refused configs, settings, adapters, checks of the backbone."""
