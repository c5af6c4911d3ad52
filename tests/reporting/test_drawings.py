"""Drawings: their numbers are those of the networks, counted independently here."""

import numpy as np
import pytest
import torch
from torchvision.models import alexnet, mobilenet_v3_small

from dfd_utils.models.detector import Detector
from dfd_utils.models.registry import create_model
from dfd_utils.reporting import drawings


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize(
    ("name", "stages", "block"),
    [
        # He et al. 2016, table 1, at 64 px instead of 224.
        ("resnet50", ["256 × 16²\n3 blocks", "512 × 8²\n4", "1024 × 4²\n6", "2048 × 2²\n3"],
         [256, 64, 64, 256]),
        # Tan and Le 2019, table 1; blocks of stage 3 expand 24 channels six times.
        ("efficientnet_b0", ["24 × 16²\n2 blocks", "40 × 8²\n2", "80 × 4²\n3", "112 × 4²\n3",
                             "192 × 2²\n4"],
         [24, 144, 144, 144, 24]),
    ],
)  # fmt: skip
def test_stages_and_block_are_those_of_the_paper(name, stages, block):
    network = create_model(name).train()
    above, below = drawings.architecture(network, 64).axes
    drawn = texts(above)
    assert drawn[0] == "image\n3 × 64²"
    for stage in stages:
        assert sum(stage in text for text in drawn) == 1
    channels = [t.split("\n")[-1] for t in texts(below) if t.endswith("channels")]
    assert channels == [f"{n} channels" for n in block]
    assert any(text.startswith("squeeze") for text in texts(below)) == (name == "efficientnet_b0")
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_an_architecture_that_is_not_in_the_registry():
    above, below = drawings.architecture(Detector(mobilenet_v3_small(num_classes=2)), 96).axes
    assert "image\n3 × 96²" in texts(above)
    assert "depthwise\n3 × 3\n88 channels" in texts(below)


def test_a_network_without_skip_connections_has_stages_alone():
    above, below = drawings.architecture(Detector(alexnet(num_classes=2)), 96).axes
    assert "image\n3 × 96²" in texts(above)
    assert texts(below) == []


def test_filters_are_those_of_the_first_layer():
    network = create_model("resnet50")
    with torch.no_grad():
        network.backbone.conv1.weight.zero_()
        network.backbone.conv1.weight[17, 0, 2, 3] = 1.0  # second row, second column
    (axis,) = drawings.first_layer(network).axes
    mosaic = axis.images[0].get_array()
    assert mosaic.shape == (4 * 8 - 1, 16 * 8 - 1, 3)
    assert mosaic[8 + 2, 8 + 3].tolist() == [1, 0, 0]
    filters = np.delete(np.delete(mosaic, np.s_[7::8], axis=0), np.s_[7::8], axis=1)
    assert filters.sum() == 1  # the rest is 0: no filter without a range is torn apart


def test_images_are_followed_through_the_stages_of_the_network():
    network = create_model("resnet50").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    figure = drawings.followed(network, images, ["Real", "Fake"])
    rows = np.array(figure.axes).reshape(2, -1)
    assert [row[0].get_ylabel() for row in rows] == ["Real", "Fake"]
    with torch.inference_mode():
        backbone = network.backbone
        stem = backbone.relu(backbone.bn1(backbone.conv1(network.normalize(images))))
        expected = backbone.layer1(backbone.maxpool(stem))[1].abs().mean(dim=0)
    shown = rows[1][3].images[0].get_array()
    np.testing.assert_allclose(shown, expected, rtol=1e-4)
    np.testing.assert_array_equal(rows[1][0].images[0].get_array(), images[1].permute(1, 2, 0))


def test_the_pipeline_names_the_files_of_a_run():
    (axis,) = drawings.pipeline().axes
    assert {"data/<name>", "metrics.json", "report.html, .pdf"} <= set(texts(axis))
