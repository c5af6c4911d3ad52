"""What trains together: model, averaged weights, loaders, optimizer and schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms import v2

from dfd_utils import transforms
from dfd_utils.config import CLASSES, SPLITS, Profile
from dfd_utils.dataset import data_loader, end_workers, load_split, seed_draws
from dfd_utils.models import create_model
from dfd_utils.precision import make_accelerator

DEGRADED_IMAGES = 5000  # of Validation, about (see DeepFakeDataset.every)


@dataclass
class Training:
    """What trains together: the model, its data, and what changes it."""

    model_name: str
    accelerator: Accelerator
    model: nn.Module
    averaged: AveragedModel
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    train_loader: DataLoader
    validation_loader: DataLoader  # of two views: Validation as it is, then some of it degraded
    micro_batch_size: int | None  # images that go through the model at once; None: all
    cutmix: v2.Transform

    def mix(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Cut the images of some batches into each other (Yun et al. 2019).

        Returns images and labels of that batch: int `[N]`, or the classes' shares, float `[N, 2]`.
        What is drawn depends on the seed, the epoch and `step` alone.
        """
        if not self.cutmix.p:
            return images, labels
        dataset = self.train_loader.dataset
        with torch.random.fork_rng(devices=[]):
            seed_draws(dataset.seed, dataset.epoch, step)
            return self.cutmix(images, labels)

    def backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add the gradients of a batch's mean loss, part by part; return the loss, detached."""
        parts = -(-len(images) // (self.micro_batch_size or len(images)))
        total = torch.zeros((), device=images.device)
        for some, theirs in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            loss = self.criterion(self.model(some), theirs) * (len(some) / len(images))
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def end_workers(self) -> None:
        """End the processes that decode."""
        for loader in (self.train_loader, self.validation_loader):
            end_workers(loader)


def prepare(
    model_name: str, data: Path, profile: Profile, log: Callable[[str], None] = print
) -> Training:
    """Make the model, the loaders and the rest of a training, on this process's device."""
    accelerator = make_accelerator(profile.precision, profile.seed)
    set_seed(profile.seed)
    train_set = load_split(data, SPLITS[0], train_transform(profile), profile.seed)
    validation_set = ConcatDataset(_views(data, profile.image_size))
    model = create_model(model_name, profile.weights, log, profile.memory_format)
    model.flip_at_test = profile.flip_at_test
    model.instance_norm = profile.instance_norm
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Statistics over the global batch, as one process has them; there is none for CPUs.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    averaged = AveragedModel(model, multi_avg_fn=_ema(profile.ema_decay), use_buffers=True)
    averaged.to(accelerator.device)
    if profile.compiled:
        model.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=profile.lr, weight_decay=profile.weight_decay, fused=True
    )
    # Constant after the warm-up: with averaged weights every epoch's model is valid on its own,
    # so that one run shows what 1, 3, 5 and 8 epochs give.
    lr_scheduler = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=0.01, total_iters=profile.warmup_steps
    )
    batch_size, workers = profile.batch_size, profile.num_workers
    model, optimizer, lr_scheduler, train_loader, validation_loader = accelerator.prepare(
        model,
        optimizer,
        lr_scheduler,
        data_loader(train_set, batch_size, shuffle=True, num_workers=workers, persistent=True),
        data_loader(validation_set, batch_size * 2, num_workers=workers, persistent=True),
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=profile.label_smoothing)
    cutmix = v2.RandomApply([v2.CutMix(num_classes=len(CLASSES))], profile.cutmix_probability)
    return Training(
        model_name, accelerator, model, averaged, criterion, optimizer, lr_scheduler,
        train_loader, validation_loader, profile.micro_batch_size, cutmix,
    )  # fmt: skip


def _views(data: Path, image_size: int) -> tuple[Dataset, Dataset]:
    """Return Validation as it is, and some of it degraded, alike for all runs."""
    clean = load_split(data, SPLITS[1], transforms.eval_transform(image_size))
    degraded = load_split(data, SPLITS[1], transforms.degraded_transform(image_size), seed=0)
    return clean, degraded.every(DEGRADED_IMAGES)


def train_transform(profile: Profile) -> v2.Transform:
    """Make the training transform: flip, sometimes degrade, resize; uint8 in and out."""
    steps = [v2.RandomHorizontalFlip()]
    if profile.degradation_probability:
        degrade = v2.RandomApply([transforms.RandomDegradation()], profile.degradation_probability)
        steps.append(degrade)
    steps.append(transforms.eval_transform(profile.image_size))
    return v2.Compose(steps)


def _ema(decay: float) -> Callable:
    @torch.no_grad()
    def update(averaged: list, current: list, count: torch.Tensor) -> None:
        # A short memory at first, or the random start would weigh on the first epochs.
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - now)
        else:
            torch._foreach_copy_(averaged, current)

    return update
