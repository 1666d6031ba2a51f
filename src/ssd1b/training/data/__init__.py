"""Training data: captioned images, in aspect-ratio buckets, encoded once, in batches."""
