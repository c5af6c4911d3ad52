"""The local page: what it answers, and, where gradio and Chromium are installed, in a browser."""

import base64
import contextlib
import http.client
import io
import json
import math
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
from safetensors.torch import load_file, save_file

from dfd_utils import cli
from dfd_utils.inference import demo, predict
from dfd_utils.inference.page import CAVEAT, VERDICTS
from dfd_utils.models.trained import find_models

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def face(easy_data):
    return easy_data.path / "Test" / "Fake" / "000.jpg"


def test_both_models_answer_side_by_side(trained_run, face):
    result = demo.render_result(face, demo.load_run(trained_run))
    for name in ("resnet50", "efficientnet_b0"):
        row = predict.predict([face], trained_run / name).loc[0]
        assert f'<p class="verdict">{VERDICTS[row["label"]]}</p>' in result
        assert f"Probability of Fake {row['score']:.2f}; from {row['score_low']:.2f} to" in result
    assert CAVEAT in result
    images = re.findall(r"base64,([^\"]+)", result)
    plain, *maps = (np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in images)
    assert len(maps) == 2
    assert all(heat.shape == plain.shape for heat in maps)


def test_a_model_without_a_result_is_named_beside_the_others(trained_run, face, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(
        trained_run / "efficientnet_b0", folder, ignore=shutil.ignore_patterns("check*")
    )
    weights = load_file(folder / "model.safetensors")
    weights["backbone.classifier.1.bias"][0] = math.nan
    save_file(weights, folder / "model.safetensors")
    models = find_models(folder, trained_run / "resnet50")
    result = demo.render_result(face, models)
    assert "<strong>No result:</strong> the model&#x27;s output is not a number" in result
    assert result.count('class="verdict"') == 1


def test_the_reason_for_an_unreadable_image_contains_no_markup(trained_run, tmp_path):
    (tmp_path / "<b>.jpg").write_bytes(b"no image")
    result = demo.render_result(tmp_path / "<b>.jpg", demo.load_run(trained_run))
    assert "Not classified" in result
    assert "<b>" not in result


def test_equal_uploads_at_the_same_time_get_the_same_answer(trained_run, face, tmp_path):
    pytest.importorskip("gradio")
    app = demo.build_app(demo.load_run(trained_run / "efficientnet_b0"))
    answer = next(event.fn for event in app.fns.values() if event.inputs)
    upload = shutil.copy(face, tmp_path / "face.jpg")  # gradio stores equal ones once
    first = answer(str(upload))
    assert not upload.exists()
    assert 'class="verdict"' in first
    assert answer(str(upload)) == first


def test_without_the_extra_one_line_says_what_to_install(trained_run, monkeypatch, capsys):
    folders = tempfile.gettempdir(), os.environ.get("GRADIO_TEMP_DIR")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--run", str(trained_run)]) == 2
    assert "pip install 'dfd-utils[demo]'" in capsys.readouterr().err
    assert folders == (tempfile.gettempdir(), os.environ.get("GRADIO_TEMP_DIR")), "restored"


def test_the_notebooks_button_classifies_and_keeps_nothing(
    trained_run, face, tmp_path, monkeypatch
):
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
    (output,) = answers.outputs
    assert "../mine.jpg" in output["data"]["text/html"]
    assert row["label"] in output["data"]["text/html"]
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def page(run, folder):
    """Serve the page in a process of its own, whose temporary files are in `folder`."""
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


def test_only_pages_of_this_computer_are_answered(trained_run, tmp_path):
    pytest.importorskip("gradio")

    def status(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        return connection.getresponse().status

    with page(trained_run / "efficientnet_b0", tmp_path) as (process, port):
        # No other address of the computer is served.
        listening = subprocess.run(["cat", f"/proc/{process.pid}/net/tcp"], capture_output=True)
        assert f"0100007F:{port:04X}".encode() in listening.stdout
        assert f"00000000:{port:04X}".encode() not in listening.stdout
        own = f"127.0.0.1:{port}"
        for host in (own, f"localhost:{port}"):
            assert status("/", Host=host) == 200
            assert status("/config", Host=host, Origin=f"http://{host}") == 200
            assert status("/gradio_api/upload", "POST", Host=host, Origin=f"http://{host}") != 403
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
            assert status("/", Host=host) == 403
            assert status("/gradio_api/upload", "POST", Host=host) == 403
        for origin in ("https://evil.example", "null", f"https://{own}", "http://127.0.0.1"):
            assert status("/config", Host=own, Origin=origin) == 403
            assert status("/gradio_api/upload", "POST", Host=own, Origin=origin) == 403
    assert list(tmp_path.iterdir()) == []


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
        file = folder / "DevToolsActivePort"
        for _ in range(300):
            if file.exists() and len(file.read_text().split()) == 2:
                break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{file.read_text().split()[0]}/json"
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
def test_in_a_browser_an_image_is_classified_and_nothing_stays(trained_run, face, tmp_path):
    pytest.importorskip("gradio")
    pytest.importorskip("websocket")
    folders = {name: tmp_path / name for name in ("server", "browser")}
    for folder in folders.values():
        folder.mkdir()
    with page(trained_run, folders["server"]) as (_, port):
        browser = Browser(folders["browser"])
        try:
            browser("Page.navigate", url=f"http://127.0.0.1:{port}")
            browser.upload(face)
            browser.wait("document.querySelectorAll('.dfd img').length == 3")
            verdicts = "[...document.querySelectorAll('.verdict')].map(e => e.innerText).join()"
            labels = [
                predict.predict([face], trained_run / name)["label"][0]
                for name in ("efficientnet_b0", "resnet50")
            ]
            assert browser.value(verdicts) == ",".join(VERDICTS[label] for label in labels)
            assert "It proves nothing" in browser.value("document.body.innerText")
            if path := os.environ.get("DFD_SCREENSHOT"):
                content = browser("Page.captureScreenshot", captureBeyondViewport=True)["data"]
                with open(path, "wb") as file:
                    file.write(base64.b64decode(content))
            kept = [p.read_bytes() for p in folders["server"].rglob("*") if p.is_file()]
            assert face.read_bytes() not in kept
            assert browser.requests
            for url in browser.requests:
                assert url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")), url
        finally:
            browser.close()
    assert list(folders["server"].iterdir()) == []
