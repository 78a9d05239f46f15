# PYTHON_ARGCOMPLETE_OK
"""`python -m alges_fast.project`."""

import gc
import sys

from alges_fast.project.cli import main

if __name__ == "__main__":
    gc.freeze()  # what torch's import leaves is a million objects, which every full collection would go through
    sys.exit(main())
