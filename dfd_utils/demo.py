"""Drop a picture: a local page with what both models say (wants gradio), a notebook's button."""

import base64
import html
import io
import os
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from dfd_utils import explain, transforms
from dfd_utils.config import UserError
from dfd_utils.models import MODELS, Detector, find_models, load_model
from dfd_utils.pictures import SUFFIXES, read_picture
from dfd_utils.predict import choose_model, predict, stream

MAX_UPLOAD = "20mb"
CAVEAT = (
    "A score is the opinion of a model about images like those it was trained on: crops of single "
    "faces. It is no proof about a person's photograph, real or fake. The heat map shows where "
    "the model found most for Fake, whichever way it decides, not where a picture was changed."
)
# Nothing is fetched from, or sent to, anywhere but this computer.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_STYLE = """
.dfd { display: flex; flex-wrap: wrap; gap: 16px; }
.dfd figure { flex: 1 1 240px; max-width: 360px; margin: 0; padding: 12px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
.dfd img { width: 100%; max-height: 340px; object-fit: contain; border-radius: 4px; }
.dfd h3 { margin: 0 0 8px 0; } .dfd p { margin: 8px 0 0 0; } .caveat { margin-top: 16px; }
.file-preview .download { visibility: hidden; }
.dfd .verdict { font-size: 1.5em; font-weight: 600; }
.dfd .warning { color: var(--body-text-color); border-left: 4px solid #d98e04; padding-left: 8px; }
"""

Model = tuple[Detector, dict]  # and its description


def load_run(run: Path | None = None) -> list[Model]:
    """Load every model of a run (None: of the newest one), with all that `stream` wants of it.

    Raises:
        UserError: no model there.
    """
    folders = find_models(run or choose_model().parent)
    return [load_model(folder) for folder in folders]


def judge(path: str | Path, models: list[Model]) -> str:
    """Return HTML with a picture and, side by side, each model's verdict and heat map.

    A picture that cannot be read gives the reason instead.
    """
    try:
        picture = read_picture(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return f"<p><strong>Not judged:</strong> {html.escape(reason)}.</p>"
    figures = [f"<figure><h3>Your picture</h3>{_embedded(explain.thumbnail(picture))}</figure>"]
    for network, description in models:
        (row,) = stream([str(path)], network, description)
        resized = transforms.eval_transform(description["image_size"])(picture)
        device = next(network.parameters()).device
        (heat,) = explain.heat_maps(network, description, resized[None].to(device))
        shown = explain.overlay(picture, heat)
        figures.append(_figure(row, description, _embedded(shown)))
    return f'<div class="dfd">{"".join(figures)}</div><p class="caveat">{CAVEAT}</p>'


def _figure(row: dict, description: dict, picture: str) -> str:
    warning = f'<p class="warning">{html.escape(row["warning"])}</p>' if row["warning"] else ""
    return (
        f"<figure><h3>{MODELS[description['architecture']].title}</h3>{picture}"
        f'<p class="verdict">{row["label"]}</p>'
        f"<p>probability of Fake {row['score']:.2f}<br>"
        f"called Fake from {row['threshold']:.2f} on</p>{warning}</figure>"
    )


def _embedded(image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'


def build_app(models: list[Model]):
    """Return the page as `gradio.Blocks`; an uploaded file is deleted once it is judged.

    Raises:
        UserError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UserError("dfd demo wants gradio: pip install 'dfd-utils[demo]'") from error

    def answer(path: str) -> str:
        try:
            return judge(path, models)
        finally:
            Path(path).unlink(missing_ok=True)

    # What was uploaded and never judged goes within two minutes.
    with gradio.Blocks(
        title="Deep Fake Image Detector", analytics_enabled=False, delete_cache=(60, 60)
    ) as app:
        gradio.Markdown(
            "# Deep Fake Image Detector\nDrop a picture of one face. It stays on this computer "
            "and is deleted once it is judged."
        )
        file = gradio.File(label="Picture", file_types=list(SUFFIXES), height=140)
        result = gradio.HTML()
        file.upload(answer, file, result, api_visibility="private", concurrency_limit=1)
        file.clear(lambda: "", None, result, api_visibility="private")
    return app


def serve(run: Path | None = None, port: int | None = None) -> None:
    """Show the page on 127.0.0.1 until interrupted; nothing uploaded stays behind.

    Args:
        run: see `load_run`.
        port: None takes the first free one from 7860 on.

    Raises:
        UserError: no model there, gradio is not installed, or the port is taken.
    """
    models = load_run(run)
    with ExitStack() as stack:
        # A request to end is an interrupt: the server closes and its files go.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="dfd-demo-"))
        stack.enter_context(mock.patch.object(tempfile, "tempdir", place))
        stack.enter_context(mock.patch.dict(os.environ, {"GRADIO_TEMP_DIR": place}))
        app = build_app(models)
        policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        try:
            app.launch(
                server_name="127.0.0.1", server_port=port, share=False, ssr_mode=False,
                max_file_size=MAX_UPLOAD, run_history=False, footer_links=[], css=_STYLE,
                head=policy, theme=_theme(), pwa=False, mcp_server=False,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"port {port}: taken or not allowed; choose another --port") from error


def _theme():
    import gradio

    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def upload_button(model: str | Path | None = None):
    """Return an ipywidgets box: a button that takes pictures, and the table of what is predicted.

    The pictures are deleted once they are judged.
    """
    import ipywidgets

    button = ipywidgets.FileUpload(accept=",".join(SUFFIXES), multiple=True)
    answers = ipywidgets.Output()

    def answer(change: dict) -> None:
        with tempfile.TemporaryDirectory() as place:
            names = [upload["name"] for upload in change["new"]]
            files = [Path(place) / f"{i}{Path(name).suffix}" for i, name in enumerate(names)]
            for file, upload in zip(files, change["new"], strict=True):
                file.write_bytes(upload["content"])
            table = predict(files, model).assign(path=names)
        answers.clear_output()
        answers.append_display_data(table)

    button.observe(answer, names="value")
    return ipywidgets.VBox([button, answers])
