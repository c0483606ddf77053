"""A release: one version, one section of the changelog, one commit with a tag."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

from tools.document import ROOT
from tools.release import RefusedError, close_section, release, set_version

NEXT = Version("0.2.0")
PYPROJECT = '[project]\nname = "x"\nversion = "0.1.0"\n\n[tool.x]\ntarget-version = "py311"\n'
CHANGELOG = """# Changelog

## [Unreleased]

### Added

- A thing.

## [0.1.0] - 2026-01-01

- The first.
"""
RELEASED = CHANGELOG.replace("## [Unreleased]", "## [Unreleased]\n\n## [0.2.0] - 2026-02-03")

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="a release is made with git")


def test_the_version_is_set_in_its_one_place() -> None:
    """Other settings that end in "version" stay."""
    assert set_version(PYPROJECT, NEXT) == PYPROJECT.replace("0.1.0", "0.2.0")
    assert set_version(PYPROJECT, Version("0.1.0")) == PYPROJECT


def test_unreleased_changes_move_to_the_version() -> None:
    """What is under them stays, and new changes have an empty section above."""
    assert close_section(CHANGELOG, NEXT, "2026-02-03") == RELEASED


@pytest.mark.parametrize("version", ["0.1.0", "0.1.0rc1", "0.0.9"])
def test_a_version_must_be_newer_than_what_is_released(version: str) -> None:
    """A candidate is older than its version."""
    with pytest.raises(RefusedError, match=rf"^{version} is not newer than 0\.1\.0, "):
        close_section(CHANGELOG, Version(version), "2026-02-03")


def test_a_version_must_not_be_older_than_the_project_s() -> None:
    """That one was meant to come."""
    with pytest.raises(RefusedError, match=r"^0\.0\.9 is older than 0\.1\.0, "):
        set_version(PYPROJECT, Version("0.0.9"))


@pytest.mark.parametrize(
    "changelog",
    [RELEASED, RELEASED.replace("## [0.2.0]", "### Added\n\n## [0.2.0]"), "# Changelog\n"],
    ids=["empty", "headings only", "no section"],
)
def test_a_release_needs_a_change(changelog: str) -> None:
    """A heading alone is none."""
    with pytest.raises(RefusedError, match="nothing under"):
        close_section(changelog, Version("0.3.0"), "2026-02-03")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a repository with this project's settings and changelog, committed."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    with (folder / "CHANGELOG.md").open("r+") as changelog:
        text = changelog.read().replace("## [Unreleased]\n", "## [Unreleased]\n\n- New.\n", 1)
        changelog.seek(0)
        changelog.write(text)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "start")
    return folder


@needs_git
def test_a_release_is_a_commit_with_a_tag(repository: Path) -> None:
    """Of this project's own files; the working tree is clean behind it."""
    assert release(repository, "99.0.0") == "v99.0.0"
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "describe", "--exact-match").strip() == "v99.0.0"
    changed = git(repository, "show", "--unified=0", "--format=%s", "HEAD^{commit}")
    lines = set(re.findall(r"^\+(?!\+).*|^release.*", changed, re.MULTILINE))
    (heading,) = lines - {"release: 99.0.0", "+", '+version = "99.0.0"'}
    assert re.fullmatch(r"\+## \[99\.0\.0\] - \d{4}-\d\d-\d\d", heading)


@needs_git
@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("next", "as in PEP 440"),
        ("99.0.0+here", "a local version can't be published"),
        ("v99.0", r"write 'v99.0' as 99\.0"),
        ("0.0.1", r"0\.0\.1 is older than "),
        ("99.1.0", r"there is a tag v99\.1\.0 already"),
    ],
)
def test_a_rejected_release_changes_nothing(repository: Path, version: str, reason: str) -> None:
    """There is no commit and no change of a file."""
    git(repository, "tag", "v99.1.0")
    with pytest.raises(RefusedError, match=reason):
        release(repository, version)
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "log", "--format=%s") == "start\n"


@needs_git
def test_other_changes_are_not_released(repository: Path) -> None:
    """Neither those of files that git knows nor new files."""
    (repository / "new.py").touch()
    with pytest.raises(RefusedError, match="the working tree has changes"):
        release(repository, "99.0.0")


@needs_git
def test_a_failing_commit_restores_the_files(repository: Path) -> None:
    """As a hook may refuse it."""
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RefusedError, match=r"^git commit: not today$"):
        release(repository, "99.0.0")
    assert git(repository, "diff", "HEAD") == ""
