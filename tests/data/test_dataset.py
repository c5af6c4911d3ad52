"""`DeepFakeDataset`: items, transforms, subsamples."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from dfd_utils.config import CLASSES
from dfd_utils.data.dataset import DeepFakeDataset, read_image
from tests.data.conftest import make_dataset


def test_items_are_uint8_images_with_real_0_and_fake_1(folder):
    dataset = make_dataset(folder)
    assert len(dataset) == len(dataset.names) == 10
    for index in range(10):
        image, label = dataset[index]
        assert (image.dtype, image.shape, type(label)) == (torch.uint8, (3, 40, 40), int)
        assert dataset.path(index) == folder / dataset.names[index]
        assert dataset.path(index).parent.name == CLASSES[label]
        with Image.open(dataset.path(index)) as reference:
            assert np.array_equal(np.asarray(reference), image.permute(1, 2, 0).numpy())


def test_read_image_is_channels_last_in_memory(folder):
    image = read_image(folder / "Train" / "Real" / "000.jpg")
    assert image.shape == (3, 40, 40)
    assert image[None].is_contiguous(memory_format=torch.channels_last)


def test_the_transform_gets_the_image_and_its_draws_depend_on_seed_epoch_and_index(folder):
    def draws(seed, epoch):
        dataset = make_dataset(folder, v2.Lambda(lambda image: torch.rand(())), seed)
        dataset.epoch = epoch
        return [float(dataset[index][0]) for index in (0, 1, 0)]

    first = draws(5, 0)
    assert first[0] == first[2] != first[1]
    assert draws(5, 0) == first
    assert draws(5, 1)[0] != first[0] != draws(6, 0)[0]
    assert make_dataset(folder, v2.Resize((16, 16)))[0][0].shape == (3, 16, 16)


def subsampled(labels: list[int], images: int) -> list[int]:
    """Return the indices that `subsample` chooses."""
    dataset = DeepFakeDataset("", [str(index) for index in range(len(labels))], labels)
    subset = dataset.subsample(images)
    assert len(dataset) == len(labels), "the old data set is unchanged"
    assert subset.labels.tolist() == [labels[int(name)] for name in subset.names]
    return [int(name) for name in subset.names]


def test_a_subsample_has_the_requested_size_and_each_class_its_share():
    balanced = [0] * 150 + [1] * 150
    assert subsampled(balanced, 100) == list(range(0, 300, 3))
    assert subsampled(balanced, 300) == subsampled(balanced, 5000) == list(range(300))
    indices = subsampled(balanced, 200)
    assert len(set(indices)) == 200 and indices == sorted(indices)
    assert sum(index < 150 for index in indices) == 100
    assert set(np.diff(indices)) == {1, 2}, "evenly spaced"
    for labels in ([0] * 90 + [1] * 10, [1, 0] * 37 + [0] * 11, [0] * 7 + [1] * 93):
        for images in (2, 3, 10, 50, 84):
            chosen = subsampled(labels, images)
            fakes = sum(labels[index] for index in chosen)
            assert len(set(chosen)) == images
            assert 1 <= fakes < images
            share = images * sum(labels) / len(labels)
            assert abs(fakes - share) <= 0.5 or fakes in (1, images - 1)


def test_a_rare_class_keeps_an_image():
    assert subsampled([0] * 999 + [1], 10)[-1] == 999
    assert subsampled([1] * 999 + [0], 10)[-1] == 999
    assert subsampled([1] * 10, 5) == [0, 2, 4, 6, 8]
