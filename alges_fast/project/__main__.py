# PYTHON_ARGCOMPLETE_OK
"""`python -m alges_fast.project`."""

import sys

from alges_fast.project.cli import main

if __name__ == "__main__":
    sys.exit(main())
