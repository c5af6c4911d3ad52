"""The local page: what it answers, and, where gradio and Chromium are installed, in a browser."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime

import numpy as np
import pytest
from PIL import Image

from dfd_utils import cli
from dfd_utils.inference import demo, predict

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def face(easy_data):
    return easy_data / "Test" / "Fake" / "000.jpg"


def test_both_models_answer_side_by_side(trained_run, face):
    told = demo.render_result(face, demo.load_run(trained_run))
    for name in ("resnet50", "efficientnet_b0"):
        row = predict.predict([face], trained_run / name).loc[0]
        assert (
            f'<p class="verdict">{row["label"]}</p><p>probability of Fake {row["score"]:.2f}'
            in told
        )
    assert demo.CAVEAT in told
    pictures = re.findall(r"base64,([^\"]+)", told)
    plain, *maps = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures)
    assert len(maps) == 2
    assert all(heat.shape == plain.shape for heat in maps)


def test_what_cannot_be_read_is_said_without_markup(trained_run, tmp_path):
    (tmp_path / "<b>.jpg").write_bytes(b"no picture")
    told = demo.render_result(tmp_path / "<b>.jpg", demo.load_run(trained_run))
    assert "Not judged" in told
    assert "<b>" not in told


def test_without_the_extra_one_line_says_what_to_install(trained_run, monkeypatch, capsys):
    places = tempfile.gettempdir(), os.environ.get("GRADIO_TEMP_DIR")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--run", str(trained_run)]) == 2
    assert "pip install 'dfd-utils[demo]'" in capsys.readouterr().err
    assert places == (tempfile.gettempdir(), os.environ.get("GRADIO_TEMP_DIR")), "put back"


def test_the_notebooks_button_judges_and_keeps_nothing(trained_run, face, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    box = demo.upload_button(trained_run / "resnet50")
    button, answers = box.children
    upload = {
        "name": "../mine.jpg",
        "type": "image/jpeg",
        "size": 1,
        "last_modified": datetime.now(),
    }
    button.value = ({**upload, "content": memoryview(face.read_bytes())},)
    row = predict.predict([face], trained_run / "resnet50").loc[0]
    (told,) = answers.outputs
    assert "../mine.jpg" in told["data"]["text/html"]
    assert row["label"] in told["data"]["text/html"]
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def page(run, folder):
    """The page in a process of its own, whose temporary files lie in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dfd_utils", "demo", "--run", str(run), "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)})
    try:
        for _ in range(600):
            assert process.poll() is None
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5)
                break
            time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


class Browser:
    """Headless Chromium, driven by its DevTools protocol."""

    def __init__(self, folder):
        import websocket

        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
             "--remote-allow-origins=*", "--window-size=1200,900", "--no-first-run",
             "--disable-background-networking", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        place = folder / "DevToolsActivePort"
        for _ in range(300):
            if place.exists() and len(place.read_text().split()) == 2:
                break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{place.read_text().split()[0]}/json"
        (target,) = (t for t in json.load(urllib.request.urlopen(url)) if t["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60)
        self.count, self.requests = 0, []
        self("Network.enable")

    def __call__(self, method, **parameters):
        self.count += 1
        call = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(json.dumps(call))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
        return answer["result"]

    def value(self, expression):
        return self("Runtime.evaluate", expression=expression)["result"].get("value")

    def wait(self, expression):
        for _ in range(300):
            if value := self.value(expression):
                return value
            time.sleep(0.1)
        raise TimeoutError(expression)

    def upload(self, path):
        self.wait("!!document.querySelector('input[type=file]')")
        root = self("DOM.getDocument")["root"]["nodeId"]
        field = self("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self("DOM.setFileInputFiles", nodeId=field, files=[str(path)])

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_a_picture_is_judged_and_nothing_stays(trained_run, face, tmp_path):
    pytest.importorskip("gradio")
    pytest.importorskip("websocket")
    places = {name: tmp_path / name for name in ("server", "browser")}
    for place in places.values():
        place.mkdir()
    with page(trained_run, places["server"]) as (process, port):
        # On this computer alone: other addresses of the machine get no answer.
        listening = subprocess.run(["cat", f"/proc/{process.pid}/net/tcp"], capture_output=True)
        assert f"0100007F:{port:04X}".encode() in listening.stdout
        assert f"00000000:{port:04X}".encode() not in listening.stdout
        browser = Browser(places["browser"])
        try:
            browser("Page.navigate", url=f"http://127.0.0.1:{port}")
            browser.upload(face)
            browser.wait("document.querySelectorAll('.dfd img').length == 3")
            verdicts = "[...document.querySelectorAll('.verdict')].map(e => e.innerText).join()"
            labels = [
                predict.predict([face], trained_run / name)["label"][0]
                for name in ("efficientnet_b0", "resnet50")
            ]
            assert browser.value(verdicts) == ",".join(labels)
            assert "no proof" in browser.value("document.body.innerText")
            if place := os.environ.get("DFD_SCREENSHOT"):
                picture = browser("Page.captureScreenshot", captureBeyondViewport=True)["data"]
                with open(place, "wb") as file:
                    file.write(base64.b64decode(picture))
            kept = [p.read_bytes() for p in places["server"].rglob("*") if p.is_file()]
            assert face.read_bytes() not in kept
            assert browser.requests
            for url in browser.requests:
                assert url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")), url
        finally:
            browser.close()
    assert list(places["server"].iterdir()) == []
