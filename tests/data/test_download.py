"""Downloads from a fake Kaggle server on 127.0.0.1 that implements what kagglehub requests."""

import base64
import csv
import io
import json
import logging
import os
import re
import shutil
import socket
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kagglesdk import kaggle_env
from PIL import Image

from dfd_utils import cli
from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data import download as download_module
from dfd_utils.data.download import DATASETS, KaggleDataset, download, split_of_video


def jpeg(value: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 0)).save(data, "JPEG")
    return data.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def kaggle_layout(pattern="Dataset/{split}/{name}/{name}_{i}.jpg", lower=False, each=3) -> dict:
    members = {}
    for split in SPLITS:
        for name in CLASSES:
            for i in range(each):
                path = pattern.format(split=split, name=name, i=i)
                members[path.lower() if lower else path] = jpeg(len(members))
    return members


class FakeKaggle(ThreadingHTTPServer):
    """Serves one archive: the API redirects to a storage that supports ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = b""
        self.status = 200
        self.cut_after = None  # bytes of a response after which the connection breaks
        self.cuts = 0  # how many more times it breaks
        self.ranges = []
        self.authorizations = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        if self.server.status != 200:
            self.answer({"code": self.server.status, "message": "refused"}, self.server.status)
        elif self.path == "/v1/datasets.DatasetApiService/GetDataset":
            self.answer({"currentVersionNumber": 1})
        elif self.path == "/kaggle-jwt-handler/AttachDatasourceUsingJwtRequest":
            self.answer({"wasSuccessful": True, "result": {"mountSlug": "attached"}})
        elif self.path == "/v1/datasets.DatasetApiService/DownloadDataset":
            self.send_response(302)
            self.send_header("Location", f"http://{self.headers['Host']}/storage/archive.zip")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer({"code": 404, "message": self.path}, 404)

    def answer(self, content: dict, status: int = 200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        self.server.ranges.append(start)
        body = self.server.archive[start:]
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # kagglehub requests a range as soon as a part is on the disk, and ignores the first body.
        if self.server.cuts and (start or len(self.server.ranges) == 1):
            self.server.cuts -= 1
            self.wfile.write(body[: self.server.cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            try:
                self.wfile.write(body)
            except OSError:  # the client only wanted the headers
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """A server in place of Kaggle; there are no credentials."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE", "DISABLE_KAGGLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    server = FakeKaggle()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, url)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def images_of(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.jpg")}


def check_nothing_left(tmp_path, folder):
    """No data set, complete or partial, and no file outside kagglehub's cache."""
    assert not folder.exists()
    assert {p.name for p in folder.parent.glob("*")} <= {".kagglehub"}
    assert {p.name for p in tmp_path.iterdir()} <= {"data", "home"}
    assert not list(tmp_path.rglob("*.complete"))


def failure(folder, name="openforensics") -> str:
    with pytest.raises(UserError) as caught:
        download(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "members",
    [
        kaggle_layout(),
        kaggle_layout(lower=True),
        kaggle_layout("a/b/real_vs_fake/real-vs-fake/{split}/{name}/{i}.JPG"),
    ],
    ids=["as published", "lower case", "nested deeper"],
)
def test_any_layout_becomes_the_projects_layout(kaggle, tmp_path, members, capfd):
    extra = {"Dataset/readme.txt": b"-", "__MACOSX/Dataset/Train/Real/._x.jpg": b"-"}
    extra |= {"Dataset/Train/Real/Thumbs.db": b"-"}
    kaggle.archive = archive(members | extra)
    folder = tmp_path / "data" / "faces"
    assert download("openforensics", folder) == folder
    for split in SPLITS:
        assert sorted(p.name for p in (folder / split).iterdir()) == sorted(CLASSES)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "dataset.json"]
    assert len(files) == 18
    for path, content in members.items():
        split, name, file = path.split("/")[-3:]
        assert (folder / split.title() / name.title() / file).read_bytes() == content
    assert all(p.stat().st_nlink == 2 for p in files), "linked, not copied"
    warnings = [line for line in capfd.readouterr().err.splitlines() if "published" in line]
    assert len(warnings) == 6
    assert "Train/Real has 3 images, but 70,000 were published" in warnings[0]
    kaggle.status = 500  # a second call sends no request
    assert download("openforensics", folder) == folder
    next((folder / "Test" / "Fake").iterdir()).unlink()
    assert "lost images" in failure(folder)


def test_other_names_of_splits_are_recognised(kaggle, tmp_path, monkeypatch, capfd):
    members = kaggle_layout("{split}/{name}/{i}.jpg", lower=True)
    kaggle.archive = archive({k.replace("validation", "valid"): v for k, v in members.items()})
    published = dict.fromkeys(SPLITS, (3, 3))
    monkeypatch.setitem(DATASETS, "small", KaggleDataset("some/small", 0.001, published))
    folder = download("small", tmp_path / "data" / "small")
    assert len(images_of(folder / "Validation")) == 6
    assert "published" not in capfd.readouterr().err
    assert json.loads((folder / "dataset.json").read_text())["counts"] == {
        f"{split}/{name}": 3 for split in SPLITS for name in CLASSES
    }


def test_the_default_folder_and_cache_are_in_the_data_folder(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "DATA_DIR", tmp_path / "data")
    kaggle.archive = archive(kaggle_layout())
    assert download() == tmp_path / "data" / "openforensics"
    assert (tmp_path / "data" / ".kagglehub" / "datasets" / "manjilkarki").is_dir()
    assert "KAGGLEHUB_CACHE" not in os.environ
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "mine"))
    download("openforensics", tmp_path / "data" / "second")
    assert (tmp_path / "mine" / "datasets" / "manjilkarki").is_dir()


def test_faces_of_videos_are_split_by_source_video(kaggle, tmp_path, capfd):
    rows, members = [], {}
    for i in range(60):
        rows.append([f"real{i:02}.mp4", "REAL", ""])
        rows += [[f"fake{i:02}{k}.mp4", "FAKE", f"real{i:02}.mp4"] for k in "ab"]
    for i, (video, _, _) in enumerate(rows):
        members[f"faces_224/{video[:-4]}.jpg"] = jpeg(i)
    table = io.StringIO()
    csv.writer(table).writerows(
        [["videoname", "label", "original"], *rows, ["gone.mp4", "REAL", ""]]
    )
    kaggle.archive = archive(members | {"metadata.csv": table.getvalue().encode()})
    folder = download("dfdc-faces", tmp_path / "data" / "dfdc")
    assert "all/Real has 60 images, but 16,293 were published" in capfd.readouterr().err
    split_of = {p.stem: (p.parent.parent.name, p.parent.name) for p in folder.rglob("*.jpg")}
    assert len(split_of) == 180
    for i in range(60):
        split, label = split_of[f"real{i:02}"]
        assert (split, label) == (split_of_video(f"real{i:02}.mp4"), "Real")
        assert split_of[f"fake{i:02}a"] == split_of[f"fake{i:02}b"] == (split, "Fake")
    shares = [split_of_video(f"{i}.mp4") for i in range(5000)]
    assert 0.78 < shares.count("Train") / 5000 < 0.82
    assert 0.08 < shares.count("Validation") / 5000 < 0.12


def test_a_lost_connection_is_resumed(kaggle, tmp_path):
    members = kaggle_layout() | {"Dataset/large.bin": os.urandom(5_000_000)}  # steps of 1 MB
    kaggle.archive = archive(members)
    kaggle.cuts, kaggle.cut_after = 2, 1_500_000
    folder = download("openforensics", tmp_path / "data" / "faces")
    assert len(images_of(folder)) == 18
    assert [start for start in kaggle.ranges if start] == [2**20, 2**21]


def test_a_connection_without_progress_is_abandoned(kaggle, tmp_path):
    kaggle.archive = archive(kaggle_layout())
    kaggle.cuts, kaggle.cut_after = 1000, 10
    folder = tmp_path / "data" / "faces"
    assert "network" in failure(folder)
    check_nothing_left(tmp_path, folder)


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "not a zip file"])
def test_a_damaged_archive_is_removed_and_downloaded_again(kaggle, tmp_path, damage):
    whole = archive(kaggle_layout())
    middle = whole.find(b"\xff\xd8") + 300
    kaggle.archive = {
        "truncated": whole[: len(whole) // 2],
        "corrupted": whole[:middle] + b"garbage" + whole[middle + 7 :],
        "not a zip file": b"<html>try later</html>" * 50,
    }[damage]
    folder = tmp_path / "data" / "faces"
    assert "damaged" in failure(folder)
    check_nothing_left(tmp_path, folder)
    assert not list(tmp_path.rglob("*.archive"))
    kaggle.archive = whole
    assert len(images_of(download("openforensics", folder))) == 18


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such data set"), (401, "token"), (403, "token"), (503, "later")]
)
def test_refusals_are_explained(kaggle, tmp_path, status, words):
    kaggle.status = status
    folder = tmp_path / "data" / "faces"
    message = failure(folder)
    assert words in message and str(status) in message
    assert "kaggle.com/datasets/manjilkarki/deepfake-and-real-images and pass --data DIR" in message
    check_nothing_left(tmp_path, folder)


@pytest.mark.parametrize("way", ["token", "key in a file"])
@pytest.mark.parametrize("status", [200, 401, 503])
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_token_is_sent_but_never_written(
    kaggle, tmp_path, monkeypatch, capfd, caplog, way, status, debug
):
    secret, home = "KGAT_0123456789marked", tmp_path / "home"
    home.mkdir()
    if way == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", secret)
        sent = f"Bearer {secret}"
    else:
        (home / "kaggle.json").write_text(json.dumps({"username": "me", "key": secret}))
        sent = "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
    caplog.set_level(logging.DEBUG)
    kaggle.archive, kaggle.status = archive(kaggle_layout()), status
    arguments = ["download", "--out", str(tmp_path / "data" / "faces"), *debug]
    assert cli.main(arguments) == (0 if status == 200 else 2)
    assert sent in kaggle.authorizations
    (home / "kaggle.json").unlink(missing_ok=True)
    written = "".join([*capfd.readouterr(), caplog.text])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written += "".join(path.read_bytes().decode("latin-1") for path in files)
    assert written
    for part in (secret, sent.split()[1]):
        assert part not in written


def test_unreadable_credentials_are_explained(kaggle, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "kaggle.json").write_text("{")
    assert "credentials" in failure(tmp_path / "data" / "faces")


def test_no_network(kaggle, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, url)
    folder = tmp_path / "data" / "faces"
    message = failure(folder)
    assert "network" in message and "--data DIR" in message
    check_nothing_left(tmp_path, folder)


def test_member_names_cannot_leave_the_folder(kaggle, tmp_path):
    evil = {
        name: jpeg(999) for name in ("../../../../../../evil.jpg", "/evil.jpg", "a/../../e.jpg")
    }
    link = zipfile.ZipInfo("Dataset/Train/Real/link.jpg")
    link.external_attr = 0o120777 << 16
    data = io.BytesIO(archive(kaggle_layout() | evil))
    with zipfile.ZipFile(data, "a") as file:
        file.writestr(link, "/etc/hostname")
    kaggle.archive = data.getvalue()
    folder = download("openforensics", tmp_path / "data" / "faces")
    names = {p.name for p in folder.rglob("*.jpg")}
    assert names == {f"{c}_{i}.jpg" for c in CLASSES for i in range(3)} | {"link.jpg"}
    assert (folder / "Train/Real/link.jpg").read_bytes() == b"/etc/hostname"  # text, not a link
    cache = tmp_path / "data" / ".kagglehub"
    for path in tmp_path.rglob("*"):
        assert not path.is_symlink() and path.is_relative_to(tmp_path / "data")
        assert path.name not in ("evil.jpg", "e.jpg") or path.is_relative_to(cache)


def test_an_archive_far_larger_than_published_is_not_unpacked(kaggle, tmp_path, monkeypatch):
    counts = DATASETS["openforensics"].counts
    monkeypatch.setitem(DATASETS, "bomb", KaggleDataset("some/bomb", 0.001, counts))
    data = io.BytesIO(archive(kaggle_layout()))
    with zipfile.ZipFile(data, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("Dataset/Train/Real/zeros.jpg", bytes(10_000_000))
    kaggle.archive = data.getvalue()
    folder = tmp_path / "data" / "bomb"
    assert "unpack" in failure(folder, "bomb")
    check_nothing_left(tmp_path, folder)
    assert not list(tmp_path.rglob("*.archive"))


def test_a_missing_class_is_named(kaggle, tmp_path):
    kaggle.archive = archive({k: v for k, v in kaggle_layout().items() if "Test/Fake" not in k})
    folder = tmp_path / "data" / "faces"
    assert "Test/Fake" in failure(folder)
    assert not folder.exists() and not list(folder.parent.glob("*.partial"))


def test_no_space(kaggle, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10 - 10**6, 10**6))
    folder = tmp_path / "data" / "faces"
    assert "DFD_DATA_DIR" in failure(folder) and not kaggle.ranges
    check_nothing_left(tmp_path, folder)


def test_a_disk_that_fills_up_while_unpacking(kaggle, tmp_path, monkeypatch):
    kaggle.archive = archive(kaggle_layout())
    folder = tmp_path / "data" / "faces"

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", full)
        assert "No space left" in failure(folder)
    check_nothing_left(tmp_path, folder)
    kaggle.ranges.clear()
    download("openforensics", folder)
    assert kaggle.ranges == [0], "the complete archive is kept"


def test_an_interrupted_layout_is_redone(kaggle, tmp_path, monkeypatch):
    kaggle.archive = archive(kaggle_layout())
    folder = tmp_path / "data" / "faces"
    seen = []

    def interrupted(file, target):
        seen.append(target)
        assert not folder.exists(), "a partial data set would remain"
        if len(seen) == 7:
            raise KeyboardInterrupt
        os.link(file, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download_module, "_link", interrupted)
        download("openforensics", folder)
    assert not folder.exists()
    (folder.parent / ".faces.partial" / "Train" / "Real").mkdir(parents=True)  # of a killed process
    (folder.parent / ".faces.partial" / "Train" / "Real" / "half.jpg").write_bytes(b"half")
    kaggle.ranges.clear()
    assert len(images_of(download("openforensics", folder))) == 18
    assert not kaggle.ranges, "the archive is not downloaded twice"


def test_without_hard_links(kaggle, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    kaggle.archive = archive(kaggle_layout())
    folder = download("openforensics", tmp_path / "data" / "linked")
    assert all(p.is_symlink() and p.read_bytes() for p in folder.rglob("*.jpg"))
    monkeypatch.setattr(os, "symlink", refuse)
    folder = download("openforensics", tmp_path / "data" / "copied")
    assert len(images_of(folder)) == 18 and not any(p.is_symlink() for p in folder.rglob("*"))


def test_a_kaggle_notebook_uses_its_attached_input(kaggle, tmp_path, monkeypatch):
    attached = tmp_path / "input" / "attached"
    for name, content in kaggle_layout().items():
        (attached / name).parent.mkdir(parents=True, exist_ok=True)
        (attached / name).write_bytes(content)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("KAGGLE_DATA_PROXY_URL", f"http://127.0.0.1:{kaggle.server_address[1]}")
    monkeypatch.setenv("KAGGLE_USER_SECRETS_TOKEN", "secret")
    monkeypatch.setenv("KAGGLE_DATA_PROXY_TOKEN", "secret")
    monkeypatch.setenv("KAGGLE_CACHE_MOUNT_FOLDER", str(tmp_path / "input"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: pytest.fail("nothing is downloaded"))
    folder = download("openforensics", tmp_path / "data" / "faces")
    assert len(images_of(folder)) == 18 and len(images_of(attached)) == 18
    assert not kaggle.ranges, "nothing was downloaded"


def test_other_folders_and_unknown_names_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "does not contain" in failure(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    message = failure(tmp_path / "other", "imagenet")
    assert all(name in message for name in ("imagenet", *DATASETS))
