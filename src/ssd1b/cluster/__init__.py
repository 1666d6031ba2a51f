"""Work on a Ray cluster. Only this package imports Ray."""
