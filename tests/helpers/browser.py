"""A page as a headless Chromium shows it, after its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def shown_in_browser(page: Path) -> str:
    """Return the document of a page as HTML; skip the test where there is no Chromium."""
    browser = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: apt install chromium-headless-shell")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'browser'}", f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
