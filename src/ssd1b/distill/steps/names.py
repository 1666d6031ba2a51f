"""Names of the methods of step distillation; no torch."""

METHOD_NAMES = ("guidance", "progressive", "lcm", "tcd", "dmd")
"""See ``methods.METHODS``."""
