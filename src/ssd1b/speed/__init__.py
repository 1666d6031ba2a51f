"""Faster execution of networks, for inference only: the same predictions up to rounding."""
