"""Distillation: remove layers from a model, then train what is left to compensate."""
