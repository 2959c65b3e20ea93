"""Known by name: the small real models that can be fetched, and the adapter that ships with the package."""
