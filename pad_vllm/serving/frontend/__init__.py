"""The front end's part: every request is checked here before it enters the engine."""
