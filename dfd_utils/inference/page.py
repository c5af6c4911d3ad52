"""HTML of a model's answer about an image, for the local page and for the report of a folder."""

import base64
import html
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from dfd_utils.config import UserError
from dfd_utils.data.dataset import read_image
from dfd_utils.data.transforms import eval_transform
from dfd_utils.evaluation.answers import measured_on
from dfd_utils.inference.verdict import UNSURE
from dfd_utils.models import gradcam
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.files import write_atomic

CAVEAT = (
    "A score is a model's estimate for images like those it was trained on: crops of single faces. "
    "It proves nothing about a photograph of a person, real or fake. The heat map shows which "
    "regions raise the score, whatever the label, and not where an image was changed."
)
VERDICTS = {
    "Real": "Looks real to this model",
    "Fake": "Looks fake to this model",
    UNSURE: "Unsure: this model gives no answer",
}
STYLE = """
.dfd { display: flex; flex-wrap: wrap; gap: 16px; }
.dfd figure { flex: 1 1 240px; max-width: 360px; margin: 0; padding: 12px; border-radius: 8px;
  border: 1px solid #8886; }
.dfd img { width: 100%; max-height: 340px; object-fit: contain; border-radius: 4px;
  margin-top: 8px; }
.dfd h3 { margin: 0 0 8px 0; overflow-wrap: anywhere; font-size: 1em; }
.dfd p { margin: 8px 0 0 0; }
.dfd .verdict { font-size: 1.4em; font-weight: 600; line-height: 1.2; }
.dfd .warning { border-left: 4px solid #d98e04; padding-left: 8px; }
.dfd .bar { position: relative; height: 14px; margin: 12px 0 2px 0; border-radius: 7px;
  background: linear-gradient(90deg, #7aa6c2, #8883 50%, #d98e04); }
.dfd .bar i { position: absolute; top: -3px; height: 20px; border-radius: 3px; }
.dfd .range { background: #0007; } .dfd .score { background: currentColor; width: 4px; }
.dfd .threshold { border-left: 2px dashed currentColor; }
.dfd .ends { display: flex; justify-content: space-between; font-size: .85em; margin: 0; }
.caveat { margin-top: 16px; }
"""


def answers_html(path: str | Path, rows: Iterable[tuple[str, dict, TrainedModel]]) -> str:
    """Return an image and, side by side, the answer of each model, given with its title and row.

    For an image that cannot be read, it is the reason instead.
    """
    try:
        image = read_image(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return f"<p><strong>Not classified:</strong> {html.escape(reason)}.</p>"
    figures = [f"<figure><h3>Your image</h3>{_embed(gradcam.thumbnail(image), 'Your image')}"]
    figures += [_answer(title, row, model, image) for title, row, model in rows]
    return f'<div class="dfd">{"</figure>".join(figures)}</figure></div>'


def _answer(title: str, row: dict, model: TrainedModel, image: Tensor) -> str:
    heading = f"<figure><h3>{html.escape(title)}</h3>"
    if row["error"]:
        return f"{heading}<p><strong>No result:</strong> {html.escape(row['error'])}.</p>"
    parts = [heading, f'<p class="verdict">{VERDICTS[row["label"]]}</p>', _bar(row)]
    if row["warning"]:
        parts.append(f'<p class="warning">{html.escape(row["warning"])}</p>')
    if model.has_heat_maps:
        resized = eval_transform(model.description.image_size)(image)
        (heat,) = gradcam.heat_maps(model, resized[None])
        parts.append(_embed(gradcam.overlay(image, heat), "Heat map: what raises the score"))
    parts += [f"<p>{html.escape(line)}</p>" for line in _measured(model)]
    return "".join(parts)


def _bar(row: dict) -> str:
    """Return the score, its range and the threshold on a bar from Real to Fake, and in words."""
    marks, text = "", f"Probability of Fake {row['score']:.2f}"
    if row["score_low"] is not None:
        low, high = row["score_low"], row["score_high"]
        marks = f'<i class="range" style="left:{low:.1%};width:{high - low:.1%}"></i>'
        text += f"; from {low:.2f} to {high:.2f} when the image is saved again, cropped or resized"
    marks += f'<i class="threshold" style="left:{row["threshold"]:.1%}"></i>'
    marks += f'<i class="score" style="left:calc({row["score"]:.1%} - 2px)"></i>'
    text += f". Fake from {row['threshold']:.2f} (dashed line)."
    ends = '<p class="ends"><span>Real</span><span>Fake</span></p>'
    return f'<div class="bar" role="img" aria-label="{text}">{marks}</div>{ends}<p>{text}</p>'


def _measured(model: TrainedModel) -> Iterator[str]:
    """Yield what was measured of the model's errors on each data set by itself."""
    for name, entry in measured_on(model).items():
        chosen = entry["chosen"]
        yield (
            f"Measured on Test of {name}, always answering: it called "
            f"{chosen['real_called_fake']:.0%} of the real images Fake and found "
            f"{chosen['recall']:.0%} of the fakes."
        )


def _embed(image: Image.Image, alt: str) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'


def write_report(rows: list[dict], model: TrainedModel, out: Path) -> None:
    """Write one self-contained page about images: those in most doubt first, errors last.

    Args:
        rows: of `predict.iter_predictions`.
        model: that gave them.
        out: the file that receives the page.
    """

    def doubt(row: dict) -> tuple:
        if row["error"]:
            return 2, 0.0
        return row["label"] != UNSURE, abs(row["score"] - row["threshold"])

    body = []
    for row in sorted(rows, key=doubt):
        name = html.escape(row["path"].encode(errors="replace").decode())
        body.append(f"<h2>{name}</h2>{answers_html(row['path'], [(model.title, row, model)])}")
    write_atomic(
        out,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\"><title>Real, Fake or Unsure</title>"
        "<style>:root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; "
        "max-width: 800px; margin: 16px auto; padding: 0 12px; } h2 { font-size: 1em; "
        f"overflow-wrap: anywhere; }}{STYLE}</style></head><body><h1>Real, Fake or Unsure</h1>"
        f"<p>{len(rows)} images, those in most doubt first.</p><p>{CAVEAT}</p>{''.join(body)}"
        "</body></html>\n",
    )
