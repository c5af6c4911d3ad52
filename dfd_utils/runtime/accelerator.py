"""The Accelerator: device, precision, and the loaders' seeded shuffle."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from dfd_utils.runtime.threads import sleep_beside_other_work
from dfd_utils.runtime.workers import configure_malloc

SEED_STEP = 2654435761  # odd, 2**32 divided by the golden ratio (Knuth, section 6.4)
MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(precision: str, seed: int = 0) -> Accelerator:
    """Return an Accelerator for `precision` (fp32, bf16 or fp16) with a seeded shuffle.

    Each seed has its own order in each epoch. Falls back to fp32 for fp16 without a GPU and for
    bf16 on a GPU that does not support it.
    """
    configure_malloc()
    sleep_beside_other_work()
    cuda = torch.cuda.is_available()
    if precision == "fp16" and not cuda:
        precision = "fp32"
    if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(False):
        precision = "fp32"
    # accelerate allows one precision per process; a notebook or a test may use several in turn.
    AcceleratorState._reset_state()
    # accelerate shuffles by data_seed + epoch, of which torch uses the lower 32 bits: with seeds
    # far apart there, no epoch of one has the order of an epoch of another.
    loader = DataLoaderConfiguration(
        split_batches=True, use_seedable_sampler=True, data_seed=seed * SEED_STEP % 2**32
    )
    return Accelerator(mixed_precision=MIXED_PRECISION[precision], dataloader_config=loader)
