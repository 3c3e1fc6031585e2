"""``python -m ape_sr``: the command `ape-sr`."""

import sys

from ape_sr.cli import main

sys.exit(main())
