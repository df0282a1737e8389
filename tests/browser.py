"""A headless Chromium for tests, over the WebDriver protocol (JSON over HTTP): standard library only."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


# The key under which WebDriver names an element, fixed by the standard.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing_programs() -> list[str]:
    """Debian packages to install before a `Browser` can be started."""
    packages = {"chromium": "chromium", "chromedriver": "chromium-driver"}
    return [package for program, package in packages.items() if shutil.which(program) is None]


class BrowserError(RuntimeError):
    """What the browser says went wrong."""


class Browser:
    """One window of Debian's Chromium; reaches loopback only, whatever the page asks for."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        self.profile = profile
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            [shutil.which("chromedriver"), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._url = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--force-device-scale-factor=1",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ]
        options = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}
        try:
            self._wait_for_driver()
            session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        except Exception:
            self._driver.kill()
            raise
        self._url += f"/session/{session['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(60)

    def _wait_for_driver(self) -> None:
        for _ in range(600):
            try:
                if self._send("GET", "/status")["ready"]:
                    return
            except OSError:
                time.sleep(0.1)
        raise BrowserError("chromedriver does not answer")

    def _send(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserError(json.load(error)["value"]["message"].splitlines()[0]) from error

    def open(self, url: str) -> None:
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *arguments):
        """The value of a piece of JavaScript (with `return`)."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        """The element that a CSS selector names."""
        return self._send("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", {ELEMENT: element})
        self._send("POST", f"/element/{element}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Types into a field (emptied before), or gives a file to a file input."""
        element = self.find(selector)
        if self.run("return arguments[0].type", {ELEMENT: element}) != "file":
            self._send("POST", f"/element/{element}/clear", {})
        self._send("POST", f"/element/{element}/value", {"text": text})

    def wait(self, script: str, *arguments, seconds: float = 120):
        """The first value of the script that is true; `BrowserError` with the script if there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.run(script, *arguments)
            if value:
                return value
            time.sleep(0.1)
        raise BrowserError(f"waited {seconds} s for: {script}")

    def resize(self, width: int, height: int) -> None:
        """Give the page this much room, which may be less than a window can have."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})

    def screenshot(self, path: Path, width: int = 1280) -> None:
        """The whole page at this width as PNG, without a scroll bar."""
        self.resize(width, 900)
        self.resize(width, int(self.run("return Math.min(document.documentElement.scrollHeight, 3000)")))
        self.run("window.scrollTo(0, 0)")
        time.sleep(0.5)
        Path(path).write_bytes(base64.b64decode(self._send("GET", "/screenshot")))
        self.resize(width, 900)
