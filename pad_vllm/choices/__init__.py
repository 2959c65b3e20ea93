"""From a person's choices between answers to their weights: logistic regression, priors over people."""
