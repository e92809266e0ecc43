"""The page in a real browser: it is drawn with its style and pictures, light and dark, without complaints."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.status.status_world import night, served
from tests.test_report import Page

LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"
#: The page's ground, as in style.css.
GROUND = {LIGHT: (0xF3, 0xF5, 0xF8), DARK: (0x0F, 0x14, 0x1B)}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    made, _ = night(tmp_path_factory.mktemp("night"), (2.0, 2.0, 2.0))
    with served(made) as port:
        yield f"http://127.0.0.1:{port}/"


def browse(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium without a window; the test skips where it is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--enable-logging=stderr",
    )
    command = [browser, *options, f"--user-data-dir={folder / 'profile'}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)


def picture(folder: Path, url: str, *words: str) -> np.ndarray:
    """The page as pixels, RGB."""
    target = folder / "page.png"
    ran = browse(folder, f"--screenshot={target}", *words, url)
    assert "Refused to" not in ran.stderr, "the page asks for something that its policy forbids"
    assert "CONSOLE" not in ran.stderr
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("scheme", GROUND, ids=["light", "dark"])
def test_it_is_drawn_in_its_own_colours_with_the_maps_on_it(url, tmp_path, scheme):
    seen = picture(tmp_path, url, "--window-size=1280,1900", scheme)
    assert np.abs(seen[2:20, 2:20].astype(int) - GROUND[scheme]).max() <= 1  # the style was applied
    grey = (seen.max(axis=-1) - seen.min(axis=-1) < 2) & (seen[..., 0] > 60) & (seen[..., 0] < 200)
    black = seen.max(axis=-1) == 0
    assert black.mean() > 0.01  # around the heads
    assert grey[black.any(axis=1)].mean() > 0.01  # the heads


def test_nothing_runs_out_of_a_narrow_screen(url, tmp_path):
    """A phone's: the ground is to be seen at the right edge, all the way down."""
    edge = picture(tmp_path, url, "--window-size=500,3000", LIGHT)[:, -8:]
    assert np.abs(edge.astype(int) - GROUND[LIGHT]).max() <= 1


def test_the_browser_reads_what_was_sent(url, tmp_path):
    page = Page(browse(tmp_path, "--dump-dom", url).stdout)
    assert "(5) qsm-edge" in " ".join(page.text)
    assert len(page.all("img")) == len(page.all("article")) == 2
    assert len(page.all("section")) == len(page.all("h2")) == 5
