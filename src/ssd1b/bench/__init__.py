"""Speed and memory beside peers, on networks of published size with random weights: nothing is downloaded."""
