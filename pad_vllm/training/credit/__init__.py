"""Dimensions taught by scores of whole answers: credit for every token, and one policy-gradient step."""
