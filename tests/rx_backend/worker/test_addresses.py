"""The command that `serve` prints, and file discovery's default folder."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path

import pytest

from rx_backend import CannotConnect
from rx_backend.worker.dynamo_runtime import make_private_folder
from rx_backend.worker.serve import curl_command


def test_the_curl_line_survives_a_shell() -> None:
    """Quotes in a model's name, and an address of IPv6, reach the server as they are."""
    words = shlex.split(curl_command("::1", 80, 'it\'s "m"'))
    assert words[:4] == ["curl", "-N", "-g", "http://[::1]:80/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == 'it\'s "m"'


def test_a_default_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the mode could be changed, as by root; it is left as it is."""
    monkeypatch.delenv("DYN_FILE_KV", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "dynamo_store_kv"
    folder.mkdir(mode=0o755)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(CannotConnect, match="belongs to another user; set DYN_FILE_KV"):
        make_private_folder()
    assert folder.stat().st_mode & 0o777 == 0o755
