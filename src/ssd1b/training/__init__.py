"""The training loop, and what trainings share."""
