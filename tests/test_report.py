"""The report's page in a real browser (Chromium by chromedriver; skipped where none is), and its files."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_diagnostics import NOISE, Recording, clean_movie, white

from denoise.diagnostics import Diagnostics, Findings
from denoise.report import to_diverging, to_gray, write_report

BROWSER = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--window-size=1200,900",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
FACTS = {"title": "day 1/<b>mouse</b> </script>$x$ \u00b5.tif", "shape": "300 frames", "calibration": ""}


def findings_of(frames: int = 300, size: int = 40, scale: float = 1.0) -> Findings:
    clean = clean_movie(frames, size)
    diagnostics = Diagnostics(Recording((clean + white(clean.shape)) * scale))
    diagnostics.add(clean * scale)
    noise = {"gain": NOISE["gain"] * scale, "read_variance": NOISE["read_variance"] * scale**2}
    return diagnostics.findings(noise, 100.0 * scale)


class Chromium:
    """A headless Chromium, told what to do by chromedriver (https://www.w3.org/TR/webdriver2/)."""

    def __init__(self, driver: str, profile: Path) -> None:
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert self.process.stdout is not None
        port = next(m[1] for line in self.process.stdout if (m := re.search(r"on port (\d+)\.", line)))
        self.address = f"http://127.0.0.1:{port}/session"
        wanted = {
            "goog:chromeOptions": {"args": [*BROWSER, f"--user-data-dir={profile}"]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.address += f"/{self._ask('', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def _ask(self, path: str, **body: Any) -> Any:
        address, data = self.address + path, json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self._ask("/url", url=page.as_uri())

    def do(self, script: str) -> Any:
        return self._ask("/execute/sync", script=script, args=[])

    def log(self, kind: str) -> list[Any]:
        return self._ask("/se/log", type=kind)

    def close(self) -> None:
        request = urllib.request.Request(self.address, method="DELETE")  # noqa: S310
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium chromium-driver)")
    browser = Chromium(driver, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_page_in_a_browser(chromium: Chromium, tmp_path: Path) -> None:
    page, _ = write_report(findings_of(), FACTS, tmp_path / "movie")
    chromium.log("performance")
    chromium.open(page)
    assert chromium.do("return document.documentElement.dataset.ready") == "yes"
    assert chromium.do("return document.getElementById('title').textContent") == FACTS["title"]
    assert chromium.do(
        "return [...document.querySelectorAll('b')].every(b => /^[0-9]$/.test(b.textContent))"
    ), "spots only"
    assert chromium.do("return document.querySelectorAll('svg').length") == 4 + 4, (
        "charts, and a trace of each cell"
    )
    assert chromium.do("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert [entry["message"] for entry in chromium.log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()], "nothing is fetched"


def test_slider_wipe_and_play_work(chromium: Chromium, tmp_path: Path) -> None:
    page, _ = write_report(findings_of(), FACTS, tmp_path / "movie")
    chromium.open(page)
    shown = "return [document.getElementById('when').textContent, document.getElementById('denoised').src]"
    before = chromium.do(shown)
    chromium.do(
        "const s = document.getElementById('slider'); s.value = 3;"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    after = chromium.do(shown)
    assert after[0] == "frame 15"
    assert after[1] != before[1]
    chromium.do(
        "const w = document.getElementById('wipe'), b = w.getBoundingClientRect();"
        "w.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + b.width / 4, buttons: 1}))"
    )
    assert chromium.do("return document.getElementById('bar').style.left") == "25%"
    chromium.do("document.getElementById('play').click()")
    end = time.monotonic() + 5
    while chromium.do(shown)[0] == "frame 15":
        assert time.monotonic() < end, "the movie does not play"
    assert chromium.log("browser") == []


@pytest.mark.parametrize("frames", [1, 2])
def test_page_of_a_short_movie_has_no_errors(chromium: Chromium, tmp_path: Path, frames: int) -> None:
    page, picture = write_report(findings_of(frames), FACTS, tmp_path / "movie")
    chromium.open(page)
    assert chromium.do("return document.documentElement.dataset.ready") == "yes"
    assert chromium.log("browser") == []
    with Image.open(picture) as image:
        assert image.size == (1400, 950)


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, picture = write_report(findings_of(), FACTS, tmp_path / "a" / "movie.v2")
    text = page.read_text(encoding="utf-8")
    links = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert links == {"http://www.w3.org/2000/svg"}, "a name, not an address"
    assert "{{" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])  # type: ignore[index]
    assert data["facts"]["title"] == FACTS["title"]
    assert len(data["frames"]) == 60
    assert {path.name for path in page.parent.iterdir()} == {"movie.v2.html", "movie.v2.png"}
    assert Image.open(io.BytesIO(picture.read_bytes())).format == "PNG"


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_a_movie_of_any_scale_looks_the_same(tmp_path: Path, scale: float) -> None:
    """Without a warning, which the tests take for an error; squares of such numbers do not fit into float32."""
    frames = []
    for factor in (1.0, scale):
        page, _ = write_report(findings_of(100, scale=factor), FACTS, tmp_path / f"{factor}")
        data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"))[1])  # type: ignore[index]
        url = data["frames"][30]["residual"]
        with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as image:
            frames.append(np.asarray(image, float))
    assert abs(frames[0] - frames[1]).max() <= 1


def test_colours_by_hand() -> None:
    assert to_gray(np.array([[0, 5, 10, 20]]), 0, 10).tolist() == [[0, 127, 255, 255]]
    assert to_diverging(np.array([[0.0]])).tolist() == [[[250, 250, 250]]]
    blue, red = to_diverging(np.array([[-2.0, 2.0]]))[0]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
