"""The command line that all generated documents share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ("ROOT", "publish", "table")

ROOT = Path(__file__).parents[1]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def publish(path: Path, text: str, problems: list[str]) -> int:
    """
    Write *text* to *path*, or with ``--check`` compare it with the file.

    Args:
        path: The document.
        text: Its content.
        problems: Problems in its sources, printed after writing; a check fails if there are some.

    Returns:
        The exit code: 1 if a check fails, else 0.
    """
    parser = argparse.ArgumentParser(description=f"Write {path.relative_to(ROOT)}.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    check = parser.parse_args().check
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        problems = [f"{path.relative_to(ROOT)} is stale: run make docs", *problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if check and problems else 0
