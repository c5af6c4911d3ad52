"""Drawings of the pipeline and of a network: its stages, its block, and what it has learned."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from dfd_utils.models.detector import Detector
from dfd_utils.reporting.style import SMALL, WIDTH, axes_grid

_FACE, _EDGE = "#eef2f6", "#1f4e79"
_PIPELINE = (  # step, what it does, what it writes
    ("Data", "Train, Validation,\nTest", "data/<name>"),
    ("1 Audit", "find duplicates\nand shortcuts", "exclude.csv"),
    ("2, 3 Train", "ResNet50,\nEfficientNet-B0", "model.safetensors"),
    ("4 Evaluate", "score Test,\ndegrade images", "metrics.json"),
    ("5 Compare", "paired tests,\nseeds, cost", "figures/<run>"),
    ("Report", "all chapters\nin one file", "report.html, .pdf"),
)


@dataclass(frozen=True)
class Stage:
    """Layers in a row whose output has one shape: blocks, channels, and side length in pixels."""

    name: str
    blocks: int
    channels: int
    size: int


def pipeline() -> Figure:
    """Return the drawing of what the notebooks do, from the data to the report."""
    figure, (axis,) = axes_grid(height=1.25)
    _blank(axis, (0, len(_PIPELINE)), (0, 1))
    for i, (step, what, written) in enumerate(_PIPELINE):
        _box(axis, i + 0.06, 0.3, 0.84, 0.7)
        axis.text(i + 0.48, 0.87, step, ha="center", va="center", size=8, weight="bold")
        axis.text(i + 0.48, 0.55, what, ha="center", va="center", size=SMALL)
        axis.text(i + 0.48, 0.14, written, ha="center", va="center", size=SMALL, family="monospace")
        if i:
            _arrow(axis, (i - 0.1, 0.65), (i + 0.06, 0.65))
    return figure


def architecture(network: Detector, image_size: int) -> Figure:
    """Return the drawing of a network: its stages for images of this size, and one of its blocks.

    Both are read from the network itself. The block is the first whose input and output have one
    shape, so that a skip connection can add them; without one, there are the stages alone.
    """
    figure, (above, below) = axes_grid(rows=2, height=3.7)
    image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
    rows = [stage for stage, _ in _follow(network, image)]
    rows = [Stage("image", 0, 3, image_size), *rows]
    _draw_stages(above, rows)
    if block := _find_block(network, image):
        _draw_block(below, *block)
    else:
        below.set_axis_off()
    return figure


def first_layer(network: Detector) -> Figure:
    """Return the filters of the first layer as colour images, each scaled to its own range."""
    weight = next(m for m in network.modules() if isinstance(m, nn.Conv2d)).weight.detach()
    filters = weight.float().cpu().permute(0, 2, 3, 1).numpy()
    low, high = (f(filters, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    filters = (filters - low) / np.maximum(high - low, 1e-12)
    side, columns = filters.shape[1], 16
    rows = -(-len(filters) // columns)
    mosaic = np.ones((rows * (side + 1) - 1, columns * (side + 1) - 1, 3))
    for i, image in enumerate(filters):
        y, x = (side + 1) * (i // columns), (side + 1) * (i % columns)
        mosaic[y : y + side, x : x + side] = image
    figure, (axis,) = axes_grid(height=rows * WIDTH / columns)
    axis.set_axis_off()
    axis.imshow(mosaic, interpolation="nearest")
    return figure


def followed(network: Detector, images: Tensor, names: list[str]) -> Figure:
    """Return images (rows) followed through the stages (columns).

    Args:
        network: a trained network.
        images: uint8 `[N, 3, H, W]`.
        names: a name for each image, such as its class.

    A map is the mean absolute activation over the channels, from dark (none) to bright (the most
    in this map).
    """
    steps = _follow(network, images)
    figure, axes = axes_grid(
        len(steps) + 1, len(images), height=0.35 + len(images) * WIDTH / (len(steps) + 1)
    )
    for i, row in enumerate(axes.reshape(len(images), -1)):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        row[0].imshow(images[i].permute(1, 2, 0).cpu().numpy())
        row[0].set_ylabel(names[i])
        for axis, (stage, output) in zip(row[1:], steps, strict=True):
            axis.imshow(output[i].abs().mean(dim=0).numpy(), cmap="magma", interpolation="nearest")
            if i == 0:
                axis.set_title(f"{stage.name}\n{stage.size} px", size=SMALL, weight="normal")
    return figure


def _follow(network: Detector, images: Tensor) -> list[tuple[Stage, Tensor]]:
    """Return the stages of a network with their outputs for these images, float32 on the CPU."""
    body = getattr(network.backbone, "features", network.backbone)
    steps = []
    for name, module, _, output in _record(network, images, body.named_children()):
        if output.ndim != 4 or output.shape[-1] == 1:
            continue
        stage = Stage(_title(name), _count_blocks(module), output.shape[1], output.shape[2])
        if steps and steps[-1][1].shape == output.shape:  # normalisation and activation
            first = steps.pop()[0]
            stage = replace(first, blocks=first.blocks + stage.blocks)
        steps.append((stage, output.float().cpu()))
    return steps


def _record(
    network: Detector, images: Tensor, modules: Iterable[tuple[str, nn.Module]]
) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    """Return name, module, input and output of these named modules, in the order of their calls."""
    seen, was_training = [], network.training

    def note(name: str):
        return lambda module, inputs, output: seen.append((name, module, inputs[0], output))

    handles = [module.register_forward_hook(note(name)) for name, module in modules]
    network.eval()
    try:
        with torch.inference_mode():
            network(images.to(next(network.parameters()).device))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return seen


def _count_blocks(module: nn.Module) -> int:
    if not any(isinstance(m, nn.Conv2d) for m in module.modules()):
        return 0
    return len(module) if type(module) is nn.Sequential else 1


def _title(name: str) -> str:
    return f"stage {name}" if name.isdigit() else name


def _find_block(network: Detector, image: Tensor) -> tuple[str, nn.Module] | None:
    """Return the first block with equal input and output, and its name; None without one."""
    blocks = [
        (name, module)
        for name, module in network.backbone.named_modules()
        if type(module) is not nn.Sequential
        and sum(isinstance(m, nn.Conv2d) for m in module.modules()) >= 3
    ]
    calls = _record(network, image, blocks)
    return next(((n, module) for n, module, x, y in calls if x.shape == y.shape), None)


def _layers(block: nn.Module) -> list[tuple[str, int]]:
    """Return a block's input and layers: a description and the channels of the output of each."""
    rows, inside = [], ""
    for name, module in block.named_modules():
        if inside and name.startswith(inside):
            continue
        if "SqueezeExcitation" in type(module).__name__:
            rows.append(("squeeze and\nexcitation", rows[-1][1]))
            inside = f"{name}."
        elif isinstance(module, nn.Conv2d):
            if not rows:
                rows.append(("input", module.in_channels))
            kernel = f"{module.kernel_size[0]} × {module.kernel_size[1]}"
            kind = "depthwise\n" if module.groups > 1 else "convolution\n"
            rows.append((f"{kind}{kernel}", module.out_channels))
    return rows


def _draw_stages(axis: Axes, stages: list[Stage]) -> None:
    """Draw a box per stage: as high as the image is large, as wide as it has channels (logs)."""
    _blank(axis, (0, len(stages)), (-0.62, 1.15))
    axis.set_title("Stages", loc="left")
    largest = np.log2(stages[0].size)
    widest = max(np.log2(stage.channels) for stage in stages)
    for i, stage in enumerate(stages):
        height = max(np.log2(stage.size) / largest, 0.08)
        width = 0.15 + 0.6 * np.log2(stage.channels) / widest
        _box(axis, i + 0.5 - width / 2, 0.5 - height / 2, width, height)
        blocks = f"{stage.blocks} blocks" if stage.blocks > 1 else ""
        text = f"{stage.name}\n{stage.channels} × {stage.size}²\n{blocks}".strip()
        axis.text(i + 0.5, -0.08, text, ha="center", va="top", size=SMALL)


def _draw_block(axis: Axes, name: str, block: nn.Module) -> None:
    """Draw a block's layers, each as high as it has channels (square root), and its skip."""
    layers = _layers(block)
    count = len(layers) + 1
    _blank(axis, (0, count), (-0.62, 1.75))
    axis.set_title(f"One block ({name})", loc="left")
    most = max(channels for _, channels in layers)
    centres = [i + 0.5 for i in range(count)]
    for x, (text, channels) in zip(centres, layers, strict=False):
        height = (channels / most) ** 0.5
        _box(axis, x - 0.13, 0.5 - height / 2, 0.26, height)
        axis.text(x, -0.08, f"{text}\n{channels} channels", ha="center", va="top", size=SMALL)
    for left, right in pairwise(centres):
        _arrow(axis, (left + 0.15, 0.5), (right - 0.13, 0.5))
    axis.text(centres[-1], 0.5, "+", ha="center", va="center", size=14, color=_EDGE)
    axis.text(centres[-1], -0.08, "sum", ha="center", va="top", size=SMALL)
    x, y = centres[0], centres[-1]
    top = 0.5 + (layers[0][1] / most) ** 0.5 / 2
    axis.plot([x, x, y, y], [top, 1.4, 1.4, 1.3], color=_EDGE, linewidth=1)
    _arrow(axis, (y, 1.35), (y, 0.65))
    axis.text((x + y) / 2, 1.48, "skip connection", ha="center", va="bottom", size=SMALL)


def _blank(axis: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axis.set(xlim=x, ylim=y)
    axis.set_axis_off()


def _box(axis: Axes, x: float, y: float, width: float, height: float) -> None:
    axis.add_patch(Rectangle((x, y), width, height, facecolor=_FACE, edgecolor=_EDGE, linewidth=1))


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = dict(arrowstyle="-|>", mutation_scale=8, color=_EDGE, linewidth=1, shrinkA=0, shrinkB=0)
    axis.add_patch(FancyArrowPatch(start, end, **style))
