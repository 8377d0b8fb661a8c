"""Makes docs/images/view-*.png: python scripts/view_images.py RUN OTHER

Five pages of `rlaif view RUN OTHER`, at 1280 and 390 pixels, light and dark.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent.parent / "docs" / "images"
PAGES = {
    "pairs": "/?principles=1&sort=principles",
    "pair": "",  # the one of which the reward ensemble is least sure
    "label": "/label?who=Ann",
    "training": "/training",
    "compare": "/compare",
}


def small(path: Path) -> None:
    """As few bytes as the eye allows: 128 colours, where Pillow is at hand."""
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(path, optimize=True)


def shoot(page: Page, address: str, width: int, scheme: str) -> None:
    """All pages at one width, in one scheme."""
    page.goto(address + "/?sort=heads")
    pair = page.get_attribute("ol.pairs a.prompt >> nth=0", "href")
    for name, path in PAGES.items():
        page.goto(address + (path or str(pair)))
        page.wait_for_load_state("load")
        target = HERE / f"view-{name}-{width}-{scheme}.png"
        page.screenshot(path=target)
        small(target)


def main() -> None:
    """Serves the runs, and takes the pictures."""
    program = "from rlaif.cli import main; main()"
    words = [sys.executable, "-c", program, "view", *sys.argv[1:3], "--port", "0"]
    env = {**os.environ, "COLUMNS": "4000"}
    server = subprocess.Popen(words, stdout=subprocess.PIPE, env=env, text=True)
    assert server.stdout is not None
    [address] = re.findall(r"(http://\S+)/ ", server.stdout.readline())
    HERE.mkdir(exist_ok=True)
    executable = os.environ.get("RLAIF_CHROMIUM") or shutil.which("chromium")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            for width in (1280, 390):
                for scheme in ("light", "dark"):
                    size = {"width": width, "height": 860}
                    context = browser.new_context(viewport=size, color_scheme=scheme)
                    shoot(context.new_page(), address, width, scheme)
            browser.close()
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
