"""Reports in a real browser: the answer is seen first, nothing is wider than the page, and the console stays silent."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from csrec_dist.files import read_json, write_record
from csrec_dist.report import write_report, write_runs_page
from tests.helpers.ranked_runs import write_ranks
from tests.helpers.run_folders import make_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(BROWSER is None, reason=f"there is no browser here: none of {', '.join(BROWSERS)}"),
]
NAME = "a_long_name_of_a_run_that_must_not_be_broken"
PROBE = """
<script>
const lines = cell => { const range = document.createRange(); range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size; };
const headline = document.querySelector(".headline");
document.body.insertAdjacentHTML("beforeend", "<pre id=probe></pre>");
document.getElementById("probe").textContent = JSON.stringify({
  width: innerWidth,
  shown: document.documentElement.clientWidth,
  scrolled: document.documentElement.scrollWidth,
  headline: headline.textContent,
  bottom: headline.getBoundingClientRect().bottom,
  broken: [...document.querySelectorAll("th")].filter(cell => lines(cell) > 1).map(cell => cell.textContent),
  num_names: document.querySelectorAll("th").length,
  ground: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector(".chart text")).fill,
  charts: [...document.querySelectorAll(".chart svg")].map(chart => chart.getBoundingClientRect().height),
});
</script>
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with ranks; the log of the first has a name that would be markup."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [make_run(folder, name=NAME), make_run(folder, name="other", training={"beta": 0.25})]
    for run in runs:
        write_ranks(run, {"base": 0, "student": 3, "teacher-0": 1, "teacher-1": 1})
    description = runs[0] / "dataset/dataset.json"
    saved = read_json(description)
    saved["source"]["name"] = "<img src=x onerror=console.error(1)>"
    write_record(description, saved)
    return runs


@pytest.fixture(scope="module")
def pages(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    several = tmp_path_factory.mktemp("pages") / "several.html"
    return {"report": write_report(runs[0]), "several": write_runs_page(runs, several)}


PHONE = """<iframe id=phone style="width: 360px; height: 800px; border: 0" srcdoc="%s"></iframe>
<script>
const phone = document.getElementById("phone");
phone.onload = () => document.body.append(phone.contentDocument.getElementById("probe"));
</script>"""
"""A page as a phone shows it: no window of the browser is as narrow."""


def look(page: str, folder: Path, *options: str, on_phone: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What the probe saw in a page, and what the console said."""
    path, probed = folder / "page.html", page.replace("</body>", f"{PROBE}</body>")
    path.write_text(PHONE % html.escape(probed) if on_phone else probed)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1280,900", "--enable-logging=stderr", "--v=0", "--dump-dom", *options]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    *_, found = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("name", ["report", "several"])
def test_a_page_at_1280_pixels(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    seen, said = look(pages[name].read_text(), tmp_path)
    assert not said
    assert seen["width"] == 1280
    assert seen["scrolled"] == seen["shown"]
    assert re.match(
        "In this run soft labels helped: .*" if name == "report" else "No difference is shown", seen["headline"]
    )
    assert seen["bottom"] < 450, "the answer is on the first screen"
    assert seen["num_names"] > 30
    assert seen["broken"] == []
    assert min(seen["charts"]) > 80


def test_a_phone_scrolls_down_only(pages: dict[str, Path], tmp_path: Path) -> None:
    seen, said = look(pages["report"].read_text(), tmp_path, on_phone=True)
    assert not said
    assert seen["width"] == 360
    assert seen["scrolled"] == seen["shown"]
    assert seen["broken"] == []


def test_dark_is_dark_in_page_and_charts(pages: dict[str, Path], tmp_path: Path) -> None:
    seen, _ = look(pages["report"].read_text(), tmp_path, "--blink-settings=preferredColorScheme=0")
    brightness = {name: sum(map(int, re.findall(r"\d+", seen[name])[:3])) for name in ("ground", "ink")}
    assert brightness["ground"] < 150
    assert brightness["ink"] > 500


def test_what_these_tests_look_for_would_be_seen(pages: dict[str, Path], tmp_path: Path) -> None:
    wrong = '<script>console.error("wrong")</script><div style="width:2000px">wide</div>'
    page = (
        pages["report"]
        .read_text()
        .replace("</header>", f"{wrong}</header>")
        .replace("white-space: nowrap", "width: 1em")
    )
    seen, said = look(page, tmp_path)
    assert len(said) == 1
    assert seen["scrolled"] > 2000
    assert seen["broken"]
