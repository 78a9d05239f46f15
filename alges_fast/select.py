# PYTHON_ARGCOMPLETE_OK
"""The command `python -m alges_fast.select`: from a model and a pool to the next frames to annotate.

In Python `alges_fast.select` is the function of that name (selection/select.py). This file is only run, never imported:
as a submodule it would take the function's place.
"""

from __future__ import annotations

if __name__ != "__main__":
    raise ImportError(
        "alges_fast.select is a function (from alges_fast import select); the command is python -m alges_fast.select, "
        "and its code is in alges_fast.project.selecting"
    )

import sys

from alges_fast.project.selecting import main

sys.exit(main())
