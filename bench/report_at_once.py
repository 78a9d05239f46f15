"""A pytest plugin: failures are printed as they come, and every result is a line of JSON in $REPORT at once."""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.outcome != "passed":
        line["why"] = report.longreprtext[-2000:] if report.failed else str(report.longrepr)[-300:]
    with open(os.environ["REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")
    if report.failed:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext[-3000:]}", flush=True)
