"""`python -m pipeline.cli`, the same as `capfilt`."""

import sys

from pipeline.cli.main import main

sys.exit(main())
