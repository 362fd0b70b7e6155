"""The page in a real browser: what it shows once it is rendered, and that it asks the network for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from difftop.compare import compare, compare_config
from tests.compare.folders import make_run

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=5000"),
]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"),
    pytest.mark.slow,
]


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Opens the page; what the browser prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a probe added that writes what was laid out into the document."""
    root = tmp_path_factory.mktemp("browser")
    for seed in (1, 2):
        for agent in ("tdmpc", "difftop_rl"):
            make_run(root / "runs", agent=agent, seed=seed, scale=seed)
    report = compare(compare_config({"runs": str(root / "runs"), "out": str(root / "out")}))
    probe = """<script>addEventListener('load', () => {
        const wide = [...document.querySelectorAll('img')].map(i => i.complete && i.naturalWidth > 100 && i.clientWidth > 100);
        const links = [...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.getAttribute('href')));
        const out = document.createElement('pre'); out.id = 'probe';
        out.textContent = JSON.stringify({images: wide, links: links, loaded: performance.getEntriesByType('resource').length,
            overflow: document.documentElement.scrollWidth > innerWidth, paper: getComputedStyle(document.body).backgroundColor,
            first: document.querySelector('main section h2').textContent});
        document.body.append(out); });</script></body>"""
    probed = report.html.with_name("probed.html")
    probed.write_text(report.html.read_text().replace("</body>", probe))
    return probed


def probed(dom: str) -> dict:
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_rendered_page_is_whole(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--window-size=1200,900", "--dump-dom")
    shown = probed(dom)
    assert shown["images"] == [True] * 3 and all(shown["links"]) and len(shown["links"]) >= 6
    # pictures are data inside the page: the browser's list of what it loaded holds no other kind
    assert not re.search(r'(?:src|href)="(?!data:|#)', dom)
    assert shown["first"] == "What was left out, and what is unequal"
    assert not shown["overflow"] and shown["paper"] == "rgb(255, 255, 255)"
    assert dom.count("<table>") >= 3 and "0.300 [0.200, 0.400]" in dom


def test_it_fits_a_telephone_and_the_dark(page: Path, tmp_path: Path) -> None:
    narrow = probed(browse(page, tmp_path, "--window-size=500,900", "--dump-dom"))
    assert not narrow["overflow"] and all(narrow["images"])
    dark = probed(browse(page, tmp_path, "--blink-settings=preferredColorScheme=0", "--dump-dom"))
    assert dark["paper"] == "rgb(20, 24, 28)"


def test_a_screenshot_is_not_blank(page: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    browse(page, tmp_path, "--window-size=1200,2400", f"--screenshot={tmp_path / 'page.png'}")
    image = imread(tmp_path / "page.png")
    assert image.shape[:2] == (2400, 1200) and image[..., :3].std() > 0.05
