"""The model card: `README.md` in a model's folder, with the metadata that model hubs read."""

import json

from dfd_utils.evaluation.answers import measured_on
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.files import write_atomic
from dfd_utils.stats.abstention import LIMIT

_METRICS = ("auc", "accuracy", "f1", "recall", "real_called_fake")
_TEXT = """\
# {title}: is a face image real or fake?

{caveat}

## Intended use

To study and compare detectors of fake face images: crops of single faces, like the images of
`{data}`, on which it was trained. Label 0 is Real, label 1 is Fake; the score is the calibrated
probability of Fake. A score proves nothing about a photograph of a person, in either direction:
do not accuse anybody by it, and do not use it where a wrong answer harms.

## Training

{training}

## Results on `Test`

{results}

AUC does not depend on a threshold; accuracy and F1 are at 0.5; recall and the share of real images
called Fake are at {threshold:.3f}, the threshold chosen on Validation. 95 % intervals, over images
and not over trainings. Data sets are never pooled; those that are not listed were not measured.

## When it does not answer

{band}

## How to use it

```
dfd predict --model {folder} photo.jpg
```

In Python: `TrainedModel("{folder}").load()` (`dfd_utils.models.trained`) returns the network: uint8
images `[N, 3, H, W]` in, logits of Real and Fake out.
"""


def write_model_card(model: TrainedModel) -> None:
    """Write the model card from the model's files; a file of weights alone gets none."""
    if not model.is_calibrated or not (model.folder / "config.json").is_file():
        return
    measured = measured_on(model)
    settings, described = model.config["settings"], model.description
    data = _plain(model.config["data"])
    caveat = "No result here says how well it works on images from elsewhere."
    if model.config.get("embedded_sample"):
        caveat = "Trained on drawn portraits: **the results are no evidence about real deepfakes**."
    band = f"No band of scores keeps wrong answers to {LIMIT:.0%} on Validation: it always answers."
    if described.unsure_from is not None:
        band = (
            f"Scores from {described.unsure_from:.3f} to {described.unsure_to:.3f} are *Unsure*: "
            f"at most {LIMIT:.0%} of the other answers are wrong on Validation, as it is and "
            "degraded."
        )
    lines = ["| data set | images | " + " | ".join(_METRICS) + " |", "|---" * 7 + "|"]
    for name, entry in measured.items():
        cells = [_cell(entry if m in _METRICS[:3] else entry["chosen"], m) for m in _METRICS]
        lines.append(f"| `{_plain(name)}` | {entry['images']} | {' | '.join(cells)} |")
    training = (
        f"`{data}` ({model.config['data_fingerprint']}); {described.epochs} epochs at "
        f"{described.image_size or 'native'} pixels, the best of them, {described.epoch}, by "
        f"Validation; from {_plain(str(settings.get('weights')))} weights; seed "
        f"{settings.get('seed')}; share of training images degraded: "
        f"{settings.get('degradation_probability')}."
    )
    text = _TEXT.format(
        title=model.title, caveat=caveat, data=data, training=training, results="\n".join(lines),
        threshold=described.threshold, band=band, folder=_plain(model.name),
    )  # fmt: skip
    write_atomic(model.folder / "README.md", f"---\n{_metadata(model, measured)}\n---\n\n{text}")


def _metadata(model: TrainedModel, measured: dict) -> str:
    """Return the metadata as YAML, of which JSON is a part.

    The keys are those of https://huggingface.co/docs/hub/model-cards.
    """
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": "test"},
            "metrics": [{"type": m, "value": entry[m]} for m in _METRICS[:3]],
        }
        for name, entry in measured.items()
    ]
    fields = {
        "pipeline_tag": "image-classification",
        "tags": ["deepfake-detection", model.description.architecture],
        "model-index": [{"name": model.title, "results": results}],
    }
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())


def _cell(entry: dict, name: str) -> str:
    low, high = entry["intervals"][name]
    if entry[name] is None or low is None:
        return "too few images"
    return f"{entry[name]:.3f} [{low:.3f}, {high:.3f}]"


def _plain(text: str) -> str:
    """Return a name that may stand in a code span: without backticks, bars and line breaks."""
    return "".join(c if c.isprintable() and c not in "`|" else "\ufffd" for c in text)
