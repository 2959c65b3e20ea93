"""Users of a server, on disk: what they chose, the weights that it taught, and who may name them."""
