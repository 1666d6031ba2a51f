"""Sweeps over settings, their results, and statistical comparisons: tuning, the report and the guide."""
