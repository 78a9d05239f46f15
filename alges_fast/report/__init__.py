"""The report of a finished or unfinished experiment, made from the files in its folder alone.

`write_report(out)` writes it; `python -m alges_fast.report OUT` writes it again; `artefacts` is what an experiment
leaves for it, `console` the table at the end of a run.
"""

from alges_fast.report.page import write_report

__all__ = ["write_report"]
