"""``python -m tests.matrix``."""

import sys

from tests.matrix.run import main

sys.exit(main())
