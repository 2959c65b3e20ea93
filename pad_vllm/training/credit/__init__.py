"""Method `scores`: credit for every token of a scored answer, and one policy-gradient step from it."""
