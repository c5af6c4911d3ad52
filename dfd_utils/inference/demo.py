"""A local web page that classifies an image (requires gradio), and a button for notebooks."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dfd_utils.config import UserError
from dfd_utils.data.image_io import IMAGE_SUFFIXES
from dfd_utils.inference.page import CAVEAT, STYLE, answers_html
from dfd_utils.inference.predict import iter_predictions, predict
from dfd_utils.models.trained import TrainedModel, choose_model, find_models, models_by_title

if TYPE_CHECKING:
    import gradio

MAX_UPLOAD = "20mb"
MAX_RECENT = 100  # answers that are kept, for equal uploads at the same time
WAITING = 600  # seconds after which an upload that nobody asked about is deleted
MAX_SESSIONS = 100  # of which gradio keeps the last answer
# The page loads from, and sends to, no other server.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_STYLE = STYLE + ".file-preview .download { visibility: hidden; }"


def load_run(run: Path | None = None) -> list[TrainedModel]:
    """Return every model of a run, loaded; None: of the newest run.

    Raises:
        UserError: the run has no model, or one that cannot be read.
    """
    models = find_models(run or choose_model().folder.parent)
    for model in models:
        model.load()
    return models


def render_result(path: str | Path, models: list[TrainedModel]) -> str:
    """Return HTML with an image and, side by side, each model's answer; see `answers_html`."""
    rows = (
        (title, next(iter_predictions([str(path)], model)), model)
        for title, model in models_by_title(models).items()
    )
    return f'{answers_html(path, rows)}<p class="caveat">{CAVEAT}</p>'


def build_app(models: list[TrainedModel]) -> gradio.Blocks:
    """Return the page; it deletes an uploaded file when it has classified it.

    Raises:
        UserError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UserError("dfd demo requires gradio: pip install 'dfd-utils[demo]'") from error

    recent: dict[str, str] = {}

    def answer(path: str) -> str:
        # gradio stores equal uploads once, under a path with their hash: the answer to the first
        # deletes the file of the others.
        if path not in recent or Path(path).is_file():
            try:
                recent[path] = render_result(path, models)
            finally:
                Path(path).unlink(missing_ok=True)
                _delete_empty_files()
        while len(recent) > MAX_RECENT:
            recent.pop(next(iter(recent)))
        return recent[path]

    # delete_cache: a file that was uploaded but never classified is deleted; waiting takes a while.
    with gradio.Blocks(
        title="Deep Fake Image Detector", analytics_enabled=False, delete_cache=(60, WAITING)
    ) as app:
        gradio.Markdown(
            "# Deep Fake Image Detector\nDrop an image of one face. It stays on this computer "
            "and is deleted after the answer."
        )
        file = gradio.File(label="Image", file_types=list(IMAGE_SUFFIXES), height=140)
        result = gradio.HTML()
        file.upload(answer, file, result, api_visibility="private", concurrency_limit=1)
        file.clear(lambda: "", None, result, api_visibility="private")
    return app


def _delete_empty_files() -> None:
    """Delete the empty files that gradio leaves in its own folder, one for each upload."""
    if "GRADIO_TEMP_DIR" not in os.environ:  # not served: gradio's files are among those of others
        return
    for path in Path(os.environ["GRADIO_TEMP_DIR"]).glob("tmp*"):
        with suppress(OSError):
            status = path.stat()
            if path.is_file() and status.st_size == 0 and time.time() - status.st_mtime > 60:
                path.unlink()


def serve(run: Path | None = None, port: int | None = None) -> None:
    """Serve the page on 127.0.0.1 until interrupted, then delete all uploads.

    Args:
        run: see `load_run`.
        port: None: the first free one from 7860 on.

    Raises:
        UserError: as `load_run`, gradio is not installed, or the port is taken.
    """
    models = load_run(run)
    with ExitStack() as stack:
        # As an interrupt, SIGTERM closes the server and deletes its files.
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, handler)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dfd-demo-"))
        stack.callback(setattr, tempfile, "tempdir", None)
        stack.callback(os.environ.pop, "GRADIO_TEMP_DIR")
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        app = build_app(models)
        import gradio
        from starlette.middleware import Middleware

        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        try:
            app.launch(
                server_name="127.0.0.1", server_port=port, share=False, ssr_mode=False,
                max_file_size=MAX_UPLOAD, run_history=False, footer_links=[], css=_STYLE,
                head=policy, theme=theme, pwa=False, mcp_server=False,
                state_session_capacity=MAX_SESSIONS,
                app_kwargs={"middleware": [Middleware(_LocalRequests)]},
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"port {port}: taken or not allowed; choose another --port") from error


class _LocalRequests:
    """ASGI middleware that answers only requests to, and from pages of, this server's address.

    Without it, a web page that the user visits could resolve its own host name to 127.0.0.1 (DNS
    rebinding) and then use this server.
    """

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        from starlette.requests import ClientDisconnect

        if scope["type"] in ("http", "websocket"):
            from starlette.responses import PlainTextResponse

            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            port = scope["server"][1]
            suffix = "" if port == 80 else f":{port}"  # as browsers write it
            hosts = [f"127.0.0.1{suffix}", f"localhost{suffix}"]
            origins = [None, *(f"http://{host}" for host in hosts)]
            if headers.get(b"host") not in hosts or headers.get(b"origin") not in origins:
                refusal = PlainTextResponse("only for pages of this computer\n", 403)
                return await refusal(scope, receive, send)
        with suppress(ClientDisconnect):  # an upload that was cut off
            await self.app(scope, receive, send)


def upload_button(model: str | Path | None = None):
    """Return an ipywidgets box: an upload button for images, and the table of their predictions.

    The images are deleted after they are classified.
    """
    import ipywidgets

    button = ipywidgets.FileUpload(accept=",".join(IMAGE_SUFFIXES), multiple=True)
    answers = ipywidgets.Output()

    def answer(change: dict) -> None:
        with tempfile.TemporaryDirectory() as folder:
            names = [upload["name"] for upload in change["new"]]
            files = [Path(folder) / f"{i}{Path(name).suffix}" for i, name in enumerate(names)]
            for file, upload in zip(files, change["new"], strict=True):
                file.write_bytes(upload["content"])
            table = predict(files, model).assign(path=names)
        answers.clear_output()
        answers.append_display_data(table)

    button.observe(answer, names="value")
    return ipywidgets.VBox([button, answers])
