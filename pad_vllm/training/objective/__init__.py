"""What training optimises: the loss, and the cached outputs of the frozen model that it reads."""
