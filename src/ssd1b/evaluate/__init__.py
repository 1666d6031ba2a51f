"""What pictures are worth: metrics."""
