"""Pages shown in a real browser, and what a script in the page around them says of each."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")

# Runs in the page around the frames, before `look(frame)`, which says what became of a frame.
_HELPERS = """
const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
const light = rgb => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
const colour = text => text.match(/[\\d.]+/g).map(Number);
const style = e => e.ownerDocument.defaultView.getComputedStyle(e);
const ground = e => {
  for (; e; e = e.parentElement) {
    const back = colour(style(e).backgroundColor);
    if (back.length == 3 || back[3] > 0) return back;
  }
  return [255, 255, 255];
};
const contrast = (front, back) => {
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
"""
_AROUND = """
addEventListener("load", async () => {
  const seen = [];
  for (const frame of document.querySelectorAll("iframe")) seen.push(await look(frame));
  document.getElementById("out").textContent = JSON.stringify(seen);
});
"""
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000 --dump-dom"
)


def browse(
    folder: Path, pages: Sequence[str], widths: Sequence[int], script: str, *, dark: bool = False
) -> list[dict[str, Any]]:
    """Show pages in frames of each width, and return what `look(frame)` of the script returns of each frame."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in widths
    )
    code = f"{_HELPERS}{script}{_AROUND}"
    file = folder / "look.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><script>{code}</script>{frames}<pre id="out"></pre>',
        encoding="utf-8",
    )
    process = subprocess.run(
        [
            str(BROWSER),
            *_FLAGS.split(),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder / 'profile'}",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    out = re.search(r'<pre id="out">(.+?)</pre>', process.stdout, re.DOTALL)
    assert out, process.stderr[-2000:]
    seen: list[dict[str, Any]] = json.loads(html.unescape(out.group(1)))
    assert len(seen) == len(pages) * len(widths)
    return seen
