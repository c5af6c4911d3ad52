"""Training: `fit` with checkpoints, exact resume at epoch ends, and averaged weights."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from scipy.special import expit
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from dfd_utils import metrics, transforms
from dfd_utils.checkpoint import (
    Progress,
    acquire,
    configuration,
    load_checkpoint,
    refuse_other_settings,
    save_checkpoint,
)
from dfd_utils.config import SPLITS, Profile, UserError, write_whole
from dfd_utils.dataset import check_layout, data_loader, load_split
from dfd_utils.models import (
    architecture,
    create_model,
    describe,
    energy_threshold,
    load_weights,
    save_model,
)
from dfd_utils.precision import make_accelerator, resolve_precision


def fit(
    model_name: str, data: Path, out: Path, profile: Profile, log: Callable[[str], None] = print
) -> pd.DataFrame:
    """Train a model and return its history, a row an epoch; a finished run is only read again.

    Each epoch the averaged weights are judged on Validation; those of the epoch with the highest
    AUC become the model, with a temperature and a threshold fitted on Validation. An interrupted
    run goes on after its last whole epoch and ends as if it had never been broken off.

    Args:
        model_name: a key of `models.MODELS`.
        data: a data set in the Kaggle layout; Test is not read.
        out: the model's folder; receives config.json, history.csv, model.safetensors,
            model.json and checkpoint/.
        profile: the settings.
        log: called with each line of progress.

    Raises:
        UserError: bad data or settings, a run of other settings or data in `out`, another
            process training there, or a loss that is no longer finite.
    """
    architecture(model_name)
    check_layout(data)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")  # noqa: SIM115  (held until the end of the training)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another run"
        ) from error
    with lock:
        acquire(lock, out)
        profile = resolve_precision(model_name, profile, log)
        config = configuration(model_name, data, profile)
        refuse_other_settings(out / "config.json", config)
        if (out / "model.json").is_file():
            log(f"{out.name}: already trained, nothing to do")
            return pd.read_csv(out / "history.csv")
        write_whole(out / "config.json", json.dumps(config, indent=2) + "\n")
        return _train(model_name, data, out, profile, log)


def _train(
    model_name: str, data: Path, out: Path, profile: Profile, log: Callable[[str], None]
) -> pd.DataFrame:
    accelerator = make_accelerator(profile.precision, profile.seed)
    set_seed(profile.seed)
    train_set = load_split(data, SPLITS[0], train_transform(profile), profile.seed)
    validation_set = load_split(data, SPLITS[1], transforms.eval_transform(profile.image_size))
    model = create_model(model_name, profile.weights, log)
    averaged = AveragedModel(model, multi_avg_fn=_ema(profile.ema_decay), use_buffers=True)
    averaged.to(accelerator.device)
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
        data_loader(train_set, batch_size, shuffle=True, num_workers=workers),
        data_loader(validation_set, batch_size * 2, num_workers=workers),
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=profile.label_smoothing)
    progress = Progress()
    accelerator.register_for_checkpointing(averaged, progress)
    load_checkpoint(accelerator, out, log)

    for epoch in range(len(progress.rows) + 1, profile.epochs + 1):
        start = time.perf_counter()
        train_set.epoch = epoch
        train_loader.set_epoch(epoch)
        training_loss = train_one_epoch(
            model, averaged, train_loader, criterion, optimizer, lr_scheduler, accelerator,
            f"{out.name} epoch {epoch}/{profile.epochs}",
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if not math.isfinite(training_loss):
            raise UserError(f"{out.name}: the loss is not finite in epoch {epoch}; lower lr")
        row = {"epoch": epoch, "training_loss": training_loss}
        row |= _validation_row(*evaluate_epoch(averaged.module, validation_loader, accelerator))
        row["lr"] = optimizer.param_groups[0]["lr"]
        row["images_per_second"] = len(train_loader) * batch_size / seconds
        row["seconds"] = time.perf_counter() - start
        progress.rows.append(row)
        if row["auc"] >= max(r["auc"] for r in progress.rows) and accelerator.is_main_process:
            save_model(averaged.module, out)
        save_checkpoint(accelerator, out)
        history = pd.DataFrame(progress.rows)
        write_whole(out / "history.csv", history.to_csv(index=False))
        log(
            f"{out.name} epoch {epoch}/{profile.epochs}: training loss {training_loss:.3f}, "
            f"Validation AUC {row['auc']:.3f}, accuracy {row['accuracy']:.3f}, "
            f"{row['images_per_second']:.0f} images/s, {row['seconds']:.0f} s"
        )

    # What is left to choose is chosen on Validation, with the weights that were kept.
    load_weights(averaged.module, out / "model.safetensors", model_name)
    labels, logits = evaluate_epoch(averaged.module, validation_loader, accelerator)
    margin = logits[:, 1] - logits[:, 0]
    temperature = metrics.fit_temperature(labels, margin)
    threshold = metrics.choose_threshold(labels, expit(margin / temperature))
    description = describe(
        model_name, profile.image_size, profile.precision, temperature, threshold
    )
    description["energy_threshold"] = energy_threshold(logits)
    write_whole(out / "model.json", json.dumps(description, indent=2) + "\n")
    return pd.read_csv(out / "history.csv")


def train_transform(profile: Profile) -> v2.Transform:
    """Make the training transform: flip, sometimes degrade, resize; uint8 in and out."""
    steps = [v2.RandomHorizontalFlip()]
    if profile.degradation_probability:
        degrade = v2.RandomApply([transforms.RandomDegradation()], profile.degradation_probability)
        steps.append(degrade)
    return v2.Compose([*steps, transforms.eval_transform(profile.image_size)])


def train_one_epoch(
    model: nn.Module,
    averaged: AveragedModel,
    loader: DataLoader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    accelerator: Accelerator,
    title: str,
) -> float:
    """Train for one pass over the loader; return the mean loss over its images."""
    model.train()
    total, images_seen = torch.zeros((), device=accelerator.device), 0
    for images, labels in tqdm(loader, desc=title, leave=False, disable=None):
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(model(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        lr_scheduler.step()
        averaged.update_parameters(accelerator.unwrap_model(model))
        total += loss.detach() * len(labels)  # summed on the device: no wait for it at each step
        images_seen += len(labels)
    total, images_seen = accelerator.reduce(
        torch.stack([total.double(), torch.tensor(float(images_seen)).to(total).double()])
    ).tolist()
    return total / images_seen


@torch.inference_mode()
def evaluate_epoch(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int `[N]` and logits float32 `[N, 2]` of every image, in the data's order."""
    model.eval()
    labels, logits = [], []
    for images, targets in loader:
        with accelerator.autocast():
            outputs = model(images).float()
        outputs, targets = accelerator.gather_for_metrics((outputs, targets))
        logits.append(outputs.cpu())
        labels.append(targets.cpu())
    return torch.cat(labels).numpy(), torch.cat(logits).numpy()


def _validation_row(labels: np.ndarray, logits: np.ndarray) -> dict:
    scores = expit(logits[:, 1] - logits[:, 0])
    judged = metrics.all_metrics(labels, scores)
    return {
        "accuracy": judged["accuracy"],
        "precision": judged["precision"],
        "recall": judged["recall"],
        "f1score": judged["f1"],
        "validation_loss": judged["log_loss"],
        "auc": judged["auc"],
    }


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
