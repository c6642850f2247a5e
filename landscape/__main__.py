"""`python -m landscape`, for where the script `landscape` is not on the path."""

import sys

from landscape.cli import main

sys.exit(main())
