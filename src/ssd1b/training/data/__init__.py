"""Captioned pictures for training: read, sorted by shape, encoded once, dealt out in batches."""
