"""Start-up: PAD's settings, the adapters, and the checks of a config; it loads no base."""
