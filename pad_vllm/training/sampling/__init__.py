"""Data made here: responses drawn from the base, scores added to them."""
