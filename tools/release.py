"""
Release a version: ``make release VERSION=0.2.0``.

Sets the version in ``pyproject.toml``, moves what is under "Unreleased" in ``CHANGELOG.md`` to a
section of that version with today's date, commits both, and tags the commit ``v0.2.0``. Nothing is
pushed or uploaded. Where it refuses, nothing has changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

from tools.document import ROOT

__all__ = ("RefusedError", "close_section", "main", "release", "set_version")

_UNRELEASED = "## [Unreleased]"
_SETTING = re.compile(r'^version = "(.+)"$', re.MULTILINE)
_HEADING = re.compile(r"^## \[(\d.*?)\]", re.MULTILINE)
_SECTION = re.compile(rf"^{re.escape(_UNRELEASED)}\n(.*?)(?=^## \[|\Z)", re.MULTILINE | re.DOTALL)


class RefusedError(Exception):
    """The version can't be released; the message gives the reason in one line."""


def set_version(pyproject: str, version: Version) -> str:
    """
    Return the text of ``pyproject.toml`` with *version*.

    Raises:
        RefusedError: The version there is a later one.
    """
    setting = _SETTING.search(pyproject)
    if setting is None:
        raise RefusedError("pyproject.toml has no line with the version")
    if Version(setting[1]) > version:
        raise RefusedError(f"{version} is older than {setting[1]}, the version in pyproject.toml")
    return f'{pyproject[: setting.start()]}version = "{version}"{pyproject[setting.end() :]}'


def close_section(changelog: str, version: Version, day: str) -> str:
    """
    Return the changelog with the unreleased changes as those of *version*, under an empty section.

    Raises:
        RefusedError: There are none, or a version that is not older has a section.
    """
    section = _SECTION.search(changelog)
    if section is None or not re.sub(r"^#.*$", "", section[1], flags=re.MULTILINE).strip():
        raise RefusedError(f"CHANGELOG.md has nothing under {_UNRELEASED!r}")
    for released in _HEADING.findall(changelog):
        if Version(released) >= version:
            raise RefusedError(f"{version} is not newer than {released}, which is in CHANGELOG.md")
    heading = f"{_UNRELEASED}\n\n## [{version}] - {day}\n"
    return changelog[: section.start()] + heading + changelog[section.start(1) :]


def release(root: Path, wanted: str) -> str:
    """
    Release a version of the repository at *root*; return the tag.

    Raises:
        RefusedError: It can't be released, or git fails; nothing has changed.
    """
    version = _parse(wanted)
    tag = f"v{version}"
    if _git(root, "status", "--porcelain"):
        raise RefusedError("the working tree has changes: commit them first")
    if _git(root, "tag", "--list", tag):
        raise RefusedError(f"there is a tag {tag} already")
    pyproject, changelog = root / "pyproject.toml", root / "CHANGELOG.md"
    old = {path: path.read_text(encoding="utf-8") for path in (pyproject, changelog)}
    day = datetime.now(UTC).date().isoformat()
    new = {
        pyproject: set_version(old[pyproject], version),
        changelog: close_section(old[changelog], version, day),
    }
    _write(new)
    try:
        _git(root, "commit", "--all", "--message", f"release: {version}")
    except RefusedError:
        _write(old)
        raise
    _git(root, "tag", "--annotate", tag, "--message", f"Version {version}")
    return tag


def _parse(wanted: str) -> Version:
    try:
        version = Version(wanted)
    except InvalidVersion:
        raise RefusedError(
            f"VERSION must be a version as in PEP 440, such as 0.2.0, got {wanted!r}"
        ) from None
    if version.local is not None:
        raise RefusedError(f"a local version can't be published, got {wanted!r}")
    if str(version) != wanted:
        raise RefusedError(f"write {wanted!r} as {version}")
    return version


def _write(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join((done.stderr or done.stdout).split())
        raise RefusedError(f"git {arguments[0]}: {reason}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Release the version that is named; return the exit code."""
    if len(arguments) != 1:
        print("say which version: make release VERSION=0.2.0", file=sys.stderr)
        return 2
    try:
        tag = release(ROOT, arguments[0])
    except RefusedError as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    print(f"{tag} is committed and tagged here; publish it with: git push --follow-tags")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
