"""The miniature: the trainings of its parts, and the model that they become."""
