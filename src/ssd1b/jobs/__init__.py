"""Jobs: each image is generated once, stored with its metrics, and reused by later requests."""
