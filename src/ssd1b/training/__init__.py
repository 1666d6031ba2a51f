"""The training loop and everything that trainings share."""
