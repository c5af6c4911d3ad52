"""`python -m dfd_utils` is the command `dfd`."""

import sys

from dfd_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
