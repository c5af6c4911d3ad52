"""The accelerator's seeded shuffle."""

import torch
from torch.utils.data import DataLoader, RandomSampler

from dfd_utils.runtime.accelerator import make_accelerator


def order_of(seed: int, epoch: int) -> tuple:
    """Return the order of 50 images in an epoch."""
    loader = DataLoader(list(range(50)), batch_size=50, shuffle=True)
    loader = make_accelerator("fp32", seed).prepare_data_loader(loader)
    loader.set_epoch(epoch)
    return tuple(next(iter(loader)).tolist())


def test_each_seed_and_epoch_has_its_own_order():
    seeds = 0, 1, 2, 3, 1000, 2**31, 2**32 - 1
    orders = {order_of(seed, epoch) for seed in seeds for epoch in range(1, 9)}
    assert len(orders) == 8 * len(seeds)
    assert order_of(3, 2) == order_of(3, 2)
    for epoch in (1, 2):  # seed 0: as if accelerate had been given the epoch alone
        generator = torch.Generator().manual_seed(epoch)
        assert order_of(0, epoch) == tuple(RandomSampler(range(50), generator=generator))
