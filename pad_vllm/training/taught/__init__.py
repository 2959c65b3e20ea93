"""Dimensions taught by a sentence: the base itself, told the wish, is the teacher; no labels, no scorers."""
