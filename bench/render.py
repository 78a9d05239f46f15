"""Writes the tables of bench/results/NAME.json into README.md and docs/benchmarks.md.

    python bench/render.py

Between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, all of it: a file of pytest-benchmark's becomes one table for
each of its groups: a row per benchmark, its median time, how many times the first row's that is, and what its
extra_info holds; what is the same in every row stands once above the table. A file of named rows becomes one table.
Between `<!-- bench:NAME summary -->` and `<!-- /bench:NAME summary -->`, one table of a row per group: the first
benchmark's median and how many times that each of the others takes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md"):
        text = page.read_text()
        for path in sorted((ROOT / "bench" / "results").glob("*.json")):
            found = json.loads(path.read_text())
            if "benchmarks" in found:
                text = replace(text, path.stem, "\n\n".join(tables(found)))
                text = replace(text, f"{path.stem} summary", summary(found))
            elif all(isinstance(row, dict) for row in found.values()):
                text = replace(text, path.stem, named_rows(found))
        page.write_text(text)


def replace(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of `name`, if it has them, replaced."""
    pattern = rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- /bench:{re.escape(name)} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def tables(found: dict[str, Any]) -> list[str]:
    """The machine, then a Markdown table per group, in the file's order."""
    return [_machine(found["machine_info"]), *(_table(name, rows) for name, rows in _groups(found).items())]


def summary(found: dict[str, Any]) -> str:
    """The machine, then one Markdown table of a row per group with rivals, in the file's order."""
    groups = {name: rows for name, rows in _groups(found).items() if len(rows) > 1}
    rivals = list(dict.fromkeys(_title(row["name"], name) for name, rows in groups.items() for row in rows[1:]))
    lines = [_machine(found["machine_info"]), "", "| | ms | " + " | ".join(f"{rival}, x" for rival in rivals) + " |"]
    lines.append("|---" * (2 + len(rivals)) + "|")
    for name, rows in groups.items():
        first = rows[0]["stats"]["median"]
        times = {_title(row["name"], name): row["stats"]["median"] / first for row in rows[1:]}
        lines.append(f"| {name} | {_cell(1e3 * first)} | " + " | ".join(_cell(times.get(it)) for it in rivals) + " |")
    return "\n".join(lines)


def named_rows(found: dict[str, dict[str, Any]]) -> str:
    """One Markdown table of a row per name."""
    columns = list(dict.fromkeys(key for row in found.values() for key in row))
    lines = ["| | " + " | ".join(map(_words, columns)) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row.get(key)) for key in columns) + " |")
    return "\n".join(lines)


def _groups(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in found["benchmarks"]:
        groups.setdefault(benchmark["group"] or "", []).append(benchmark)
    return groups


def _machine(info: dict[str, Any]) -> str:
    facts = [info.get("gpu") or info.get("processor") or info.get("cpu", {}).get("brand_raw", "")]
    facts += [f"{info['threads']} threads"] if "threads" in info else []
    facts += [f"{name} {number}" for name, number in info.get("versions", {}).items()]
    return ", ".join(facts) + "."


def _table(group: str, rows: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key, value in row["extra_info"].items() if _is_number(value)))
    values = {key: [row["extra_info"].get(key) for row in rows] for key in keys}
    shared = [key for key in keys if len(rows) > 1 and len(set(values[key])) == 1]
    columns = [key for key in keys if key not in shared]
    first = rows[0]["stats"]["median"]
    lines = [
        ", ".join([f"**{group}**"] * bool(group) + [f"{_words(key)} {_cell(values[key][0])}" for key in shared]),
        "",
        "| | ms | times the first | " + " | ".join(map(_words, columns)) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for row in rows:
        median = row["stats"]["median"]
        cells = [_title(row["name"], group), _cell(1e3 * median), _cell(median / first)]
        lines.append("| " + " | ".join(cells + [_cell(row["extra_info"].get(key)) for key in columns]) + " |")
    return "\n".join(lines)


def _title(name: str, group: str) -> str:
    """`test_rival[cpu B8 ...-eager]`, in the group of that case, is `eager`."""
    test, _, parameters = name.removeprefix("test_").removesuffix("]").partition("[")
    own = parameters.replace(group, "").strip("-") if group else parameters
    return " ".join(([] if test == "rival" else [test]) + ([own] if own else []))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " x ".join(map(str, value))
    if not _is_number(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
