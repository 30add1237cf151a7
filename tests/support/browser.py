"""A headless Chromium that lays a page out at a given width, where one is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SECONDS = 120

FRAME = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<body style="margin:0"><iframe style="width:{width}px;height:2000px;border:0"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{ document.title = JSON.stringify((() => {{ {script} }})(frame.contentDocument)); }};
frame.srcdoc = {page};
</script></body>"""
"""A page that holds another one at a width of its own, and whose title becomes the result of a script."""

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt-get install chromium)")


def evaluate(page: Path, script: str, folder: Path, *, width: int, dark: bool = False) -> Any:
    """The result of a script in a page of a given width.

    Args:
        page: The HTML file.
        script: JavaScript that returns a value; `frame.contentDocument` is the page.
        folder: Where a copy and the browser's profile are written to.
        width: Width of the page in pixels; narrower than Chromium's own windows can be.
        dark: Whether the reader prefers a dark background.
    """
    assert BROWSER
    content = json.dumps(page.read_text()).replace("</", "<\\/")
    copy = folder / f"frame-{width}-{dark}.html"
    copy.write_text(FRAME.format(width=width, script=script, page=content))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},2000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown, flags=re.DOTALL)
    assert title, "the script gave no result"
    return json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
