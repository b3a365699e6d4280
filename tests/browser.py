"""A headless Chromium, driven over its DevTools protocol with nothing but the standard library."""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile

import support

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank",
)  # fmt: skip


class Page:
    """One tab: a WebSocket (RFC 6455) that carries JSON commands and their results."""

    def __init__(self, port, path):
        self.client = support.Client(port)
        self.sent = 0
        head = [
            "GET %s HTTP/1.1" % path, "Host: 127.0.0.1:%d" % port, "Connection: Upgrade",
            "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode(),
        ]  # fmt: skip
        self.client.send("\r\n".join([*head, "", ""]).encode())
        while b"\r\n\r\n" not in self.client.buffer:
            assert self.client.more(), "Chromium has ended"
        answer, _, self.client.buffer = self.client.buffer.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    def _take(self, size):
        while len(self.client.buffer) < size:
            assert self.client.more(), "Chromium has ended"
        taken, self.client.buffer = self.client.buffer[:size], self.client.buffer[size:]
        return taken

    def _message(self):
        """The next message; Chromium sends text frames, of which the last one has the FIN bit."""
        text, final = b"", False
        while not final:
            first, size = self._take(2)
            final = first >= 0x80
            if size >= 126:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            text += self._take(size)
        return json.loads(text.decode("utf-8"))

    def command(self, method, **params):
        """Run one DevTools command, wait for its result, and skip the events before it."""
        self.sent += 1
        data = json.dumps({"id": self.sent, "method": method, "params": params}).encode()
        # A client masks what it sends; a mask of zeros leaves the bytes as they are.
        self.client.send(b"\x81\xff" + struct.pack(">QI", len(data), 0) + data)
        while True:
            message = self._message()
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return message["result"]

    def run(self, script):
        """The JSON value of an expression; a promise is awaited."""
        done = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script):
        """Wait until the expression is true."""
        support.wait_until(lambda: self.run(script), script)

    def open(self, url):
        self.command("Page.navigate", url=url)
        self.wait("location.href === %s && document.readyState === 'complete'" % json.dumps(url))

    def key(self, name, code, text=""):
        """Press and let go of one key, as a person does."""
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                         windowsVirtualKeyCode=code, text=text if kind == "keyDown" else "")

    def look(self, width=1440, height=900, dark=False):
        """Take another size of the window, another colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=width < 700)

    def screenshot(self, path):
        """For whoever works on the page: what a person sees, as a PNG file."""
        shot = self.command("Page.captureScreenshot", format="png")
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))


def _listening_port(process, path):
    """Chromium writes its port into the first of two lines of this file."""
    lines = []

    def written():
        assert process.poll() is None, "Chromium did not start"
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            lines[:] = file.read().split("\n")
        return len(lines) > 1 and lines[1]

    support.wait_until(written, "Chromium listens")
    return int(lines[0])


@contextlib.contextmanager
def running():
    """A browser of its own with an empty profile; yields its one page."""
    profile = tempfile.mkdtemp()
    process = subprocess.Popen(
        [CHROMIUM, "--user-data-dir=" + profile, *ARGUMENTS],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=dict(os.environ, TMPDIR=profile),  # it leaves folders there
        start_new_session=True,  # so that its helper processes can be ended with it
    )  # fmt: skip
    try:
        port = _listening_port(process, os.path.join(profile, "DevToolsActivePort"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=support.PATIENCE)
        with contextlib.closing(connection):
            connection.request("PUT", "/json/new?about:blank")
            tab = json.loads(connection.getresponse().read().decode("utf-8"))
        page = Page(port, tab["webSocketDebuggerUrl"].partition(str(port))[2])
        with page.client:
            yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(profile, ignore_errors=True)
