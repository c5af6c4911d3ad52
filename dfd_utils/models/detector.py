"""The networks, with all that turns their input into logits inside."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from dfd_utils.data import transforms
from dfd_utils.models.linear_dct import FEATURES

_STATISTICS_BYTES = 4 * FEATURES


class Detector(nn.Module):
    """A classifier with its normalisation inside: uint8 `[N, 3, H, W]` in, logits `[N, 2]` out.

    Column 0 of the logits is Real, column 1 Fake. With `flip_at_test` the logits in eval mode are
    the mean of those of an image and of its mirror image. With `instance_norm` brightness, contrast
    and colour cast of an image do not matter (see `normalize`).
    """

    def __init__(
        self, backbone: nn.Module, flip_at_test: bool = False, instance_norm: bool = False
    ):
        super().__init__()
        self.flip_at_test = flip_at_test
        self.instance_norm = instance_norm
        self.backbone = backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        if self.flip_at_test and not self.training:
            return (self._logits(images) + self._logits(images.flip(-1))) / 2
        return self._logits(images)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn a uint8 batch `[N, 3, H, W]` into the backbone's input, float32.

        Normalises by ImageNet's statistics and, with `instance_norm`, each channel of each image to
        mean 0 and standard deviation 1 (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022).
        """
        images = transforms.normalize(images)
        if self.instance_norm:
            images = F.instance_norm(images)
        return images.contiguous(memory_format=torch.channels_last)

    def _logits(self, images: Tensor) -> Tensor:
        return self.backbone(self.normalize(images))

    def fuse_batchnorm(self) -> Detector:
        """Return a copy in eval mode with each batch normalisation folded into its convolution.

        The copy gives the same logits, to rounding, a tenth to a quarter faster on a CPU. It is for
        scoring only: it cannot be trained, and Grad-CAM does not find its layers.
        """
        return Detector(fuse(self.backbone), self.flip_at_test, self.instance_norm).eval()


class LinearDetector(nn.Module):
    """The baseline: block-DCT statistics `[N, 576, 1, 1]` in, logits `[N, 2]` out.

    Logistic regression on the standardised statistics.
    """

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"scaler": _Scaler(), "linear": nn.Linear(FEATURES, 1)})

    def forward(self, statistics: Tensor) -> Tensor:
        with torch.autocast(statistics.device.type, enabled=False):
            scaled = self.backbone["scaler"](statistics.flatten(1))
            return _as_logits(self.backbone["linear"](scaled)[:, 0])

    def distance(self, statistics: Tensor) -> Tensor:
        """Return how unlike those of Train the statistics of images are: `[N]`, about 1 there.

        The mean of the squared standardised statistics.
        """
        return self.backbone["scaler"](statistics.flatten(1)).square().mean(dim=1)

    def fuse_batchnorm(self) -> LinearDetector:
        """Return a copy in eval mode; see `Detector.fuse_batchnorm`."""
        return copy.deepcopy(self).eval()


class FusedDetector(nn.Module):
    """A network and the baseline: `inputs.fused_input` in, logits `[N, 2]` out.

    The margin of the logits is a weighted sum of both margins and a constant (`mix`).
    """

    def __init__(self, network: Detector, baseline: LinearDetector):
        super().__init__()
        parts = {"network": network, "baseline": baseline, "mix": _Mix()}
        self.backbone = nn.ModuleDict(parts)

    def forward(self, packed: Tensor) -> Tensor:
        packed, parts = packed.flatten(1), self.backbone
        pixels = packed[:, :-_STATISTICS_BYTES]
        size = round((pixels.shape[1] / 3) ** 0.5)
        # The pixels stand channels last, as the loader gives them to a network alone.
        images = pixels.reshape(-1, size, size, 3).permute(0, 3, 1, 2)
        statistics = packed[:, -_STATISTICS_BYTES:].contiguous().view(torch.float32)
        logits = parts["network"](images), parts["baseline"](statistics)
        margins = torch.stack([part.float().diff(dim=1)[:, 0] for part in logits], dim=1)
        with torch.autocast(packed.device.type, enabled=False):
            return _as_logits(parts["mix"](margins, parts["baseline"].distance(statistics)))

    def fuse_batchnorm(self) -> FusedDetector:
        """Return a copy in eval mode; see `Detector.fuse_batchnorm`."""
        network = self.backbone["network"].fuse_batchnorm()
        fused = FusedDetector(network, self.backbone["baseline"])
        fused.backbone["mix"] = self.backbone["mix"]
        return copy.deepcopy(fused).eval()


class _Scaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    def forward(self, statistics: Tensor) -> Tensor:
        return (statistics - self.mean) / self.scale


class _Mix(nn.Module):
    """The weighted sum of the margins of network and baseline, and a constant.

    Degrading an image changes its spectrum far more than forging it: where the statistics are
    further from those of Train than `limit`, the baseline has no say.
    """

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("limit", torch.tensor(torch.inf))

    def forward(self, margins: Tensor, distance: Tensor) -> Tensor:
        has_say = torch.stack([torch.ones_like(distance), (distance <= self.limit).float()], dim=1)
        return self.linear(margins * has_say)[:, 0]


def _as_logits(margins: Tensor) -> Tensor:
    return torch.stack([-margins / 2, margins / 2], dim=1)
