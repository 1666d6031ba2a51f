"""How often a test repeats what is random: damage, kills, examples of a property.

A few rounds notice that something broke; ``pytest --thorough`` looks for what is rare.
"""

import os


def rounds(few: int, many: int) -> int:
    """Return ``many`` with ``--thorough``, otherwise ``few``."""
    return many if "SSD1B_THOROUGH" in os.environ else few
