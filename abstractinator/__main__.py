"""`python -m abstractinator` is the command `abstractinator`."""

import sys

from abstractinator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
