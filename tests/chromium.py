"""Chromium without a window, for tests that look at a page: commands of its DevTools protocol through a pipe.

Source: https://chromedevtools.github.io/devtools-protocol, ``--remote-debugging-pipe`` (commands come in on descriptor
3 and answers go out on 4, each ended by a zero byte).
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for it in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(it))), None
)


class Browser:
    """One tab of a browser that talks through two pipes."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._count, self._rest, self._session = commands, answers, 0, b"", ""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __call__(self, method: str, **params: Any) -> Any:
        """Send one command and return its answer."""
        self._count += 1
        where = {"sessionId": self._session} if self._session else {}
        sent = json.dumps({"id": self._count, "method": method, "params": params} | where).encode() + b"\0"
        while sent:
            sent = sent[os.write(self._commands, sent) :]
        while True:
            while b"\0" not in self._rest:
                got = os.read(self._answers, 1 << 16)
                assert got, "the browser has ended"
                self._rest += got
            message, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(message)
            if found.get("id") == self._count:
                assert "error" not in found, found
                return found["result"]

    def show(self, html: str, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Show a page in a window so many pixels wide."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", media=media, features=features)
        frame = self("Page.getFrameTree")["frameTree"]["frame"]["id"]
        self("Page.setDocumentContent", frameId=frame, html=html)

    def run(self, script: str) -> Any:
        """Return what a script gives, once its promise is kept."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self("Page.getLayoutMetrics")["cssContentSize"] | {"scale": 1}
        taken = self("Page.captureScreenshot", captureBeyondViewport=True, clip=size)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, or skip the test where there is none, or it does not start."""
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    (reads, commands), (answers, writes) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # The shell puts the two descriptors where the browser looks for them.
        started = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", CHROMIUM, *options],
            pass_fds=(reads, writes),
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        try:
            yield Browser(commands, answers)
        finally:
            started.kill()
            started.wait()
            os.close(commands)
            os.close(answers)
