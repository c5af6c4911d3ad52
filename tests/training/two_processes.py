"""What each process of test_distributed.py runs."""

import sys
from pathlib import Path

from torch import nn

from dfd_utils import cli, config
from dfd_utils.data.folder import DataFolder
from dfd_utils.models.detector import Detector
from dfd_utils.models.registry import create_model
from dfd_utils.training import baseline, components, train

NAME = "efficientnet_b0"
PROFILE = config.get_profile(
    "sample", epochs=2, image_size=32, batch_size=16, precision="fp32", num_workers=0,
    warmup_steps=4, degradation_probability=0.5,
)  # fmt: skip


def without_batch_norm(name: str, weights: str) -> Detector:
    """Build the model with layer norms instead of batch norms."""
    model = create_model(name, weights)
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(module, child, nn.GroupNorm(1, layer.num_features))
    return model


def train_without_batch_norm(data: Path, out: Path) -> None:
    """Train such a model into `out`."""
    components.create_model = without_batch_norm
    try:
        train.fit(NAME, DataFolder(data), out, PROFILE)
    finally:
        components.create_model = create_model


def train_with_a_broken_image(data: Path, out: Path) -> int:
    """Train by the command; an image breaks between the audit and the first step."""
    autotune = train.autotune

    def break_image(*args: object) -> config.Profile:
        (data / "Train" / "Fake" / "003.jpg").write_bytes(b"")
        return autotune(*args)

    train.autotune = break_image
    command = ["train", "--model", NAME, "--data", str(data), "--out", str(out)]
    return cli.main([*command, "--image-size", "32", "--batch-size", "16", "--precision", "fp32"])


if __name__ == "__main__":
    task, data, out, *models = sys.argv[1:]
    if task == "broken":
        sys.exit(train_with_a_broken_image(Path(data), Path(out)))
    if task == "score":
        code = cli.main(["evaluate", "--data", data, *models])
        rows = str(Path(out) / "rows.csv")
        command = ["predict", "--model", *models, "--format", "csv", "--output", rows]
        sys.exit(code or cli.main([*command, str(Path(data) / "Test")]))
    if task == "baseline":
        baseline.add_baseline(Path(out), DataFolder(data))
    else:
        train_without_batch_norm(Path(data), Path(out))
