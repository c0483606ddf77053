"""
Find Chromium and its driver for the tests in a browser, or fetch Debian's packages of them.

What is fetched is Chromium without a window, with the libraries that it needs and that are not
installed, about 100 MB. As in ``tools.cluster`` nothing is installed, so root is not needed.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.cluster import UnavailableError, unpack
from tools.document import ROOT

__all__ = ("FOLDER", "Browser", "fetch", "find")

FOLDER = ROOT / ".browser"

_PACKAGE = "chromium-headless-shell"
_DRIVER = "chromium-driver"
# Fontconfig's own file is for fonts that are installed.
_FONTS_CONF = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{folder}/unpacked/usr/share/fonts</dir>
  <cachedir>{folder}/fonts-cache</cachedir>
</fontconfig>
"""


@dataclass(frozen=True)
class Browser:
    """A browser's program, that of its driver, and the environment in which both run."""

    program: Path
    driver: Path
    environment: dict[str, str]


def find() -> Browser:
    """
    Return the browser that is installed, or the one that was fetched.

    Raises:
        UnavailableError: There is neither.
    """
    programs = (shutil.which(name) for name in ("chromium", _PACKAGE))
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is not None and driver is not None:
        return Browser(Path(program), Path(driver), dict(os.environ))
    unpacked = FOLDER / "unpacked"
    if not unpacked.is_dir():
        raise UnavailableError("chromium or chromedriver not found: make test-browser fetches them")
    return Browser(
        unpacked / "usr" / "lib" / "chromium" / _PACKAGE,
        unpacked / "usr" / "bin" / "chromedriver",
        {**os.environ, **_places(unpacked)},
    )


def fetch() -> None:
    """
    Fetch the packages unless there is a browser.

    Raises:
        UnavailableError: They cannot be fetched.
    """
    try:
        find()
    except UnavailableError:
        FOLDER.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=FOLDER) as name:
            # The driver's package asks for the browser with a window.
            unpacked = unpack([_DRIVER], Path(name), needed_by=_PACKAGE)
            if (unpacked / "etc" / "fonts").is_dir():
                (FOLDER / "fonts.conf").write_text(
                    _FONTS_CONF.format(folder=FOLDER), encoding="utf-8"
                )
            unpacked.replace(FOLDER / "unpacked")


def _places(unpacked: Path) -> dict[str, str]:
    """Return where the libraries and fonts are that were fetched."""
    folders = {str(library.parent) for library in unpacked.glob("**/*-linux-gnu*/**/*.so*")}
    places = {"LD_LIBRARY_PATH": os.pathsep.join(sorted(folders))} if folders else {}
    fonts = FOLDER / "fonts.conf"
    if fonts.is_file():
        places["FONTCONFIG_FILE"] = str(fonts)
    return places


def main() -> int:
    """Make the browser available; return 1, with a line on stderr, if that fails."""
    try:
        fetch()
    except UnavailableError as error:
        sys.stderr.write(f"no tests in a browser: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
