"""``python -m tandem_snn`` is ``tandem-snn``."""

import sys

from .cli import main

sys.exit(main())
