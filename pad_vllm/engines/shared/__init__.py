"""The `shared` engine: the PersRM forked inside the served model."""
