"""What is trained towards: the loss, and what it reads of the frozen model."""
