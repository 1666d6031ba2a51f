"""Work on a Ray cluster; nothing else in the package imports Ray."""
