"""`python -m qsm_edge` is the same as the command `qsm-edge`."""

import sys

from qsm_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
