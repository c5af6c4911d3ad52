"""Does the local page stay right, small and clean under load and bad requests?

    python -m benchmarks.page_load [--at-once 200] [--minutes 20] [--run FOLDER]

Starts `dfd demo` on a small model (or on `--run`) and uploads images from many threads. An image
must get the same answer each time. Meanwhile the program sends wrong types, uploads that are too
large, cut off or slow, foreign hosts and origins, and paths out of the page's folders. Prints
memory, open files and kept files over time. Exits with 1 after a wrong answer, a leak, or a file
that is left.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil

from benchmarks.kill_pipeline import ROOT

PATHS = (
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/file=/etc/passwd",
    "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd", "/static/../../../../etc/passwd",
    "/assets/..%2f..%2f..%2fetc/passwd", "/theme.css/../../../etc/passwd",
    "/gradio_api/file=" + str(ROOT / "pyproject.toml"), "/svelte/..%5c..%5cetc/passwd",
    "/gradio_api/file=http://127.0.0.1:1/x", "/gradio_api/proxy=http://127.0.0.1:1/x",
)  # fmt: skip


class Page:
    """The page's server, and requests to it."""

    def __init__(self, run: Path, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-P", "-m", "dfd_utils", "demo", "--run", str(run)]
        environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
        self.folder, self.log = folder, open(folder.parent / "page.log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], env=environment, stdout=self.log, stderr=self.log
        )
        for _ in range(900):
            with contextlib.suppress(OSError):
                self.config = json.loads(self.request("GET", "/config")[1])
                break
            time.sleep(0.1)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """Return the status and the body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(
                method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "face.jpg") -> tuple[int, bytes]:
        """Upload a file as the browser does."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"'
        body = f"{head}\r\nContent-Type: image/jpeg\r\n\r\n".encode() + content
        body += f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return self.request("POST", "/gradio_api/upload", body, Content_Type=kind)

    def classify(self, content: bytes) -> str:
        """Upload an image and return the page's answer, HTML."""
        status, said = self.upload(content)
        if status != 200:
            raise RuntimeError(f"upload: {status} {said[:100]!r}")
        path, session = json.loads(said)[0], uuid.uuid4().hex
        file = {"path": path, "orig_name": "face.jpg", "meta": {"_type": "gradio.FileData"}}
        number = next(d["id"] for d in self.config["dependencies"] if d["inputs"])
        call = json.dumps({"data": [file], "fn_index": number, "session_hash": session}).encode()
        self.request("POST", "/gradio_api/queue/join", call, Content_Type="application/json")
        said = self.request("GET", f"/gradio_api/queue/data?session_hash={session}")[1]
        for line in said.decode().splitlines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                return str(message["output"].get("data") or message["output"])
        raise RuntimeError(f"no answer: {said[-200:]!r}")

    def attack(self, number: int) -> str:
        """Send one bad request; return a fault, or ""."""
        kind = number % 6
        if kind == 0:
            path = PATHS[number // 6 % len(PATHS)]
            status, said = self.request("GET", path)
            return f"{path}: {status}" if b"root:" in said or b"[build-system]" in said else ""
        if kind == 1:
            status, _ = self.request("GET", "/", Host="evil.example")
            return "" if status == 403 else f"foreign host: {status}"
        if kind == 2:
            origin = {"Origin": "https://evil.example", "Host": f"127.0.0.1:{self.port}"}
            status, _ = self.request("POST", "/gradio_api/upload", b"", **origin)
            return "" if status == 403 else f"foreign origin: {status}"
        if kind == 3:
            with contextlib.suppress(OSError):  # the page may close the connection
                status, _ = self.upload(bytes(25 * 2**20), "huge.jpg")
                return "" if status >= 400 else f"25 MB: {status}"
            return ""
        if kind == 4:
            answer = self.classify(os.urandom(3000))
            return "" if "Not classified" in answer else f"no image: {answer[:200]}"
        with socket.create_connection(("127.0.0.1", self.port)) as cut:  # slow, then cut off
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            head += (
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
            )
            cut.sendall(head.encode() + b"--x\r\n")
            time.sleep(2)
        return ""

    def size(self) -> tuple[float, int, int, int]:
        """Return memory in MB, open files, threads, and files kept on disk."""
        process = psutil.Process(self.process.pid)
        memory = process.memory_info().rss / 2**20
        kept = sum(path.is_file() for path in self.folder.rglob("*"))
        return memory, process.num_fds(), process.num_threads(), kept


def verdict(html: str) -> str:
    """Return what the page says of an image, without the pictures."""
    found = re.search(r'class="verdict">([^<]+).*?Probability of Fake ([\d.]+)', html, re.DOTALL)
    return " ".join(found.groups()) if found else html[:300]


def main() -> int:
    """Load the page, and print its size every minute and the counts at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--run", type=Path, help="default: a small model, trained now")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DFD_OUTPUT_DIR": str(folder / "o")}
        dfd = [sys.executable, "-P", "-m", "dfd_utils"]
        data, run = folder / "tiny", options.run or folder / "run"
        commands = [[*dfd, "sample", str(data), "--per-class", "16"]]
        if not options.run:
            train = [*dfd, "train", "--model", "efficientnet_b0", "--data", str(data), "--out"]
            commands.append([*train, str(run), "--epochs", "1", "--image-size", "32"])
        for command in commands:
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        (folder / "temporary").mkdir()
        return load(Page(run, folder / "temporary"), data, options)


def load(page: Page, data: Path, options: argparse.Namespace) -> int:
    """Load a page until the time is over, end it, and look at what is left."""
    images = [path.read_bytes() for path in sorted(data.glob("Test/*/*.jpg"))]
    expected = [verdict(page.classify(image)) for image in images]
    counts, faults, lock = Counter(), [], threading.Lock()
    end = time.monotonic() + 60 * options.minutes

    def user(number: int) -> None:
        while time.monotonic() < end:
            try:
                if number % 20 == 19:
                    kind, fault = "bad requests", page.attack(counts["bad requests"])
                else:
                    index = (number + counts["answers"]) % len(images)
                    answer = verdict(page.classify(images[index]))
                    kind = "answers"
                    fault = "" if answer == expected[index] else f"{answer} for {expected[index]}"
            except Exception as error:
                kind, fault = "answers", f"{type(error).__name__}: {error}"
            with lock:
                counts[kind] += 1
                faults.extend([fault] if fault else [])

    threads = [threading.Thread(target=user, args=[i]) for i in range(options.at_once)]
    for thread in threads:
        thread.start()
    print("| minute | answers | memory, MB | open files | threads | kept files |")
    print("|---:|---:|---:|---:|---:|---:|")
    start, sizes = time.monotonic(), []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(60, 60 * options.minutes / 4))
        sizes.append(page.size())
        memory, *rest = sizes[-1]
        cells = [counts["answers"], f"{memory:.0f}", *rest]
        print(
            f"| {(time.monotonic() - start) / 60:.1f} | {' | '.join(map(str, cells))} |", flush=True
        )
    page.process.send_signal(signal.SIGTERM)
    page.process.wait(60)
    left = [path for path in page.folder.iterdir() if not path.name.startswith("torchinductor_")]
    page.log.seek(0)
    said = page.log.read()
    if "Traceback" in said:
        faults.append(f"a traceback in the log: {said[said.index('Traceback') :][-1500:]}")
    faults += [f"left: {path.name}" for path in left]
    middle = max(size[0] for size in sizes[: len(sizes) // 2 + 1])
    if sizes[-1][0] > 1.2 * middle:
        faults.append(f"memory grows: {middle:.0f} to {sizes[-1][0]:.0f} MB")
    print(f"{dict(counts)}; {len(faults)} faults: {Counter(faults).most_common(8)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
