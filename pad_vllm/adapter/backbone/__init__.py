"""Which model an adapter belongs to: its shape, its weights' fingerprint, the families that may be forked."""
