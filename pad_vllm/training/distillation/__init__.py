"""Dimensions trained from a sentence: the base, given the sentence in its prompt, is the teacher."""
