"""What each process of test_processes.py runs: a training without batch norm, an evaluation."""

import sys
from pathlib import Path

from torch import nn

from dfd_utils import cli, config
from dfd_utils.models import detector, registry
from dfd_utils.training import components, train

PROFILE = config.get_profile(
    "sample", epochs=2, image_size=32, batch_size=16, precision="fp32", num_workers=0,
    warmup_steps=4, degradation_probability=0.5,
)  # fmt: skip


def without_batch_norm(name: str, *args: object) -> detector.Detector:
    """Build the model with layer norms in the batch norms' places."""
    model = registry.create_model(name, *args)
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(module, child, nn.GroupNorm(1, layer.num_features))
    return model


def train_without_batch_norm(data: Path, out: Path) -> None:
    """Train such a model into `out`."""
    components.create_model = without_batch_norm
    try:
        train.fit("efficientnet_b0", data, out, PROFILE)
    finally:
        components.create_model = registry.create_model


if __name__ == "__main__":
    data, out, model = map(Path, sys.argv[1:])
    train_without_batch_norm(data, out)
    sys.exit(cli.main(["evaluate", "--data", str(data), str(model)]))
