"""``python -m ssd1b``."""

import sys

from ssd1b.cli import main

sys.exit(main())
