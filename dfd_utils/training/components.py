"""The components of a training: model, averaged weights, loaders, optimizer and schedule."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.transforms import v2

from dfd_utils.config import CLASSES, SPLITS, Profile
from dfd_utils.data import transforms
from dfd_utils.data.dataset import seed_cpu_rng
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.loader import data_loader, shutdown_workers
from dfd_utils.models.registry import create_model
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.training.validation import validation_views


@dataclass
class TrainingComponents:
    """All that takes part in a training."""

    model_name: str
    accelerator: Accelerator
    model: nn.Module
    ema_model: AveragedModel
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    train_loader: DataLoader
    validation_loader: DataLoader  # all of Validation, then a part of it degraded
    micro_batch_size: int | None  # images per forward pass; None: a whole batch
    cutmix: v2.Transform

    def apply_cutmix(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Apply CutMix to some batches (Yun et al. 2019, https://arxiv.org/abs/1905.04899).

        Returns images and labels of the batch: int `[N]`, or class shares, float `[N, 2]`. The
        random numbers depend on the seed, the epoch and `step` only.
        """
        if not self.cutmix.p:
            return images, labels
        dataset = self.train_loader.dataset
        with torch.random.fork_rng(devices=[]):
            seed_cpu_rng(dataset.seed, dataset.epoch, step)
            return self.cutmix(images, labels)

    def accumulate_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add the gradients of a batch's mean loss, a micro-batch at a time; return that loss."""
        parts = -(-len(images) // (self.micro_batch_size or len(images)))
        total = torch.zeros((), device=images.device)
        for part, targets in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            loss = self.criterion(self.model(part), targets) * (len(part) / len(images))
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def shutdown_workers(self) -> None:
        """End the processes that decode images."""
        for loader in (self.train_loader, self.validation_loader):
            shutdown_workers(loader)


def build_components(model_name: str, data: DataFolder, profile: Profile) -> TrainingComponents:
    """Build all components of a training on this process's device."""
    accelerator = make_accelerator(profile.precision, profile.seed)
    set_seed(profile.seed)
    train_set = data.split(SPLITS[0], train_transform(profile), profile.seed)
    validation_set = ConcatDataset(
        validation_views(data, transforms.eval_transform(profile.image_size))
    )
    model = create_model(model_name, profile.weights)
    model.flip_at_test = profile.flip_at_test
    model.instance_norm = profile.instance_norm
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Statistics of the global batch, as in one process; not available on CPUs.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema_model = AveragedModel(model, multi_avg_fn=_ema_update(profile.ema_decay), use_buffers=True)
    ema_model.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=profile.lr, weight_decay=profile.weight_decay, fused=True
    )
    # Constant after the warm-up: with averaged weights every epoch's model is valid on its own,
    # so that one run shows the results of 1, 3, 5 and 8 epochs.
    lr_scheduler = torch.optim.lr_scheduler.LinearLR(
        optimizer, 0.01 if profile.warmup_steps else 1.0, total_iters=profile.warmup_steps
    )
    batch_size, workers = profile.batch_size, profile.num_workers
    model, optimizer, lr_scheduler, train_loader, validation_loader = accelerator.prepare(
        model,
        optimizer,
        lr_scheduler,
        data_loader(train_set, batch_size, shuffle=True, num_workers=workers, persistent=True),
        data_loader(validation_set, batch_size * 2, num_workers=workers, persistent=True),
    )
    cutmix = v2.RandomApply([v2.CutMix(num_classes=len(CLASSES))], profile.cutmix_probability)
    return TrainingComponents(
        model_name, accelerator, model, ema_model, nn.CrossEntropyLoss(), optimizer, lr_scheduler,
        train_loader, validation_loader, profile.micro_batch_size, cutmix,
    )  # fmt: skip


def train_transform(profile: Profile) -> Callable[[Tensor], Tensor]:
    """Return the training transform: flip, sometimes degrade, resize, crop; uint8 in and out."""
    steps = [v2.RandomHorizontalFlip()]
    if profile.degradation_probability:
        degrade = v2.RandomApply([transforms.RandomDegradation()], profile.degradation_probability)
        steps.append(degrade)
    steps.append(transforms.eval_transform(profile.image_size))
    if profile.crop < 1:
        steps.append(v2.RandomCrop(round(profile.crop * profile.image_size)))
    return v2.Compose(steps)


def _ema_update(decay: float) -> Callable:
    @torch.no_grad()
    def update(averaged: list, current: list, count: Tensor) -> None:
        # A short memory at first, or the random start would dominate the first epochs.
        effective = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - effective)
        else:
            torch._foreach_copy_(averaged, current)

    return update
