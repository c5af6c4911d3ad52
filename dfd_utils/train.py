"""Training: `fit` with checkpoints, exact resume, and averaged weights."""

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import broadcast
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader

from dfd_utils import metrics
from dfd_utils.checkpoint import CheckpointWriter, TrainingState, checkpoints, load_checkpoint
from dfd_utils.config import SPLITS, Profile, UserError, write_whole
from dfd_utils.dataset import check_layout, load_split
from dfd_utils.interrupt import GO_ON, SAVE, Interrupted, Watch
from dfd_utils.models import architecture
from dfd_utils.processes import on_main, processes
from dfd_utils.progress import Progress
from dfd_utils.recipe import Training, prepare
from dfd_utils.run import (
    as_begun,
    configuration,
    finish,
    finished,
    keep_epoch,
    locked,
    refuse_other_settings,
    tell_epoch,
)
from dfd_utils.tuning import tune


def fit(
    model_name: str, data: Path, out: Path, profile: Profile, log: Callable[[str], None] = print
) -> pd.DataFrame:
    """Train a model and return its history, a row an epoch; a finished run is only read again.

    Each epoch the averaged weights are judged on Validation; those of the best epoch (see
    `history.best_epoch`) become the model, with a temperature and a threshold fitted on
    Validation. An interrupted run goes on from its last checkpoint and ends as if it had never
    been broken off.

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
    if not processes().is_main_process:
        log = _silent
    if profile.batch_size % processes().num_processes:
        raise UserError(
            f"setting batch_size: {profile.batch_size} images cannot be shared equally by "
            f"{processes().num_processes} processes; choose a multiple"
        )
    with ExitStack() as held:

        def open_run() -> tuple[Profile, bool]:
            held.enter_context(locked(out))
            images = profile.epochs * len(load_split(data, SPLITS[0]))
            resolved = tune(model_name, as_begun(out, profile), images, log)
            config = configuration(model_name, data, resolved)
            refuse_other_settings(out / "config.json", config)
            done = finished(out, resolved)
            if not done:
                write_whole(out / "config.json", json.dumps(config, indent=2) + "\n")
            return resolved, done

        profile, done = on_main(open_run)
        if done:
            log(f"{out.name}: already trained, nothing to do")
        else:
            with Watch(profile) as watch:
                training = prepare(model_name, data, profile, log)
                held.callback(training.end_workers)
                state = TrainingState(training.accelerator)
                with CheckpointWriter(training, state, out, log) as writer:
                    _train(training, state, writer, profile, watch, log)
                on_main(finish, state, out, training, profile)
        return on_main(pd.read_csv, out / "history.csv")


def _silent(line: str) -> None:
    pass


def _train(
    training: Training,
    state: TrainingState,
    writer: CheckpointWriter,
    profile: Profile,
    watch: Watch,
    log: Callable[[str], None],
) -> None:
    accelerator, averaged, out = training.accelerator, training.averaged, writer.out
    load_checkpoint(training, state, out, log)
    steps = len(training.train_loader)
    shown = log if accelerator.is_main_process else None
    progress = Progress(out.name, profile.epochs, steps, profile.batch_size, watch.deadline, shown)

    def save(tell: Callable[[], None] = lambda: None) -> None:
        writer.save(tell)
        watch.saved()

    def stop(verdict: int | None = None) -> None:
        progress.end()
        save()
        writer.wait()
        last = next(iter(checkpoints(out)), None)
        place = f"checkpoint {last.name}" if last else "the beginning"
        watch.end(
            verdict,
            f"{out.name} is in epoch {state.epoch}/{profile.epochs}, step {state.step}/{steps}; "
            f"the same command goes on from {place}",
        )

    def after_step() -> None:
        progress.step(state)
        writer.poll()
        verdict = watch.verdict(state.step)
        if verdict == SAVE:
            save()
        elif verdict != GO_ON:
            stop(verdict)

    while len(state.rows) < profile.epochs:
        progress.begin(state)
        training_loss = train_one_epoch(training, state, after_step)
        progress.end()
        if not math.isfinite(training_loss):
            raise UserError(f"{out.name}: the loss is not finite in epoch {state.epoch}; lower lr")
        start = time.perf_counter()
        try:
            with watch.interruptible():
                row = _judged(training)
        except Interrupted:
            stop()
        row = {"epoch": state.epoch, "training_loss": training_loss} | row
        row["lr"] = training.optimizer.param_groups[0]["lr"]
        row["images_per_second"] = steps * profile.batch_size / state.seconds
        saving = state.checkpoint_seconds
        row["seconds"] = state.seconds + saving + time.perf_counter() - start
        state.add(row, averaged.module)
        if profile.keep_epochs:
            on_main(keep_epoch, averaged.module, row, out, training.model_name, profile)
        state.begin_epoch()
        # An epoch that was told of is not lost: it is told of when its checkpoint is in its place.
        save(partial(tell_epoch, list(state.rows), saving, out, profile.epochs, log))
        verdict = watch.verdict(0)
        if verdict > SAVE and len(state.rows) < profile.epochs:
            stop(verdict)


def train_one_epoch(
    training: Training, state: TrainingState, after_step: Callable[[], None] = lambda: None
) -> float:
    """Train to the end of the running epoch; return the mean loss over its images.

    A resumed epoch begins after the batches that the state has counted; their images are not
    read again. `after_step` is called when a step is done and counted in the state.
    """
    accelerator, loader = training.accelerator, training.train_loader
    loader.dataset.epoch = state.epoch
    loader.set_epoch(state.epoch)
    training.model.train()
    batches = skip_first_batches(loader, state.step) if state.step else loader
    begun = time.perf_counter()
    for images, labels in batches if state.step < len(loader) else ():
        training.optimizer.zero_grad(set_to_none=True)
        loss = training.backward(*training.mix(images, labels, state.step))
        training.optimizer.step()
        training.lr_scheduler.step()
        training.averaged.update_parameters(accelerator.unwrap_model(training.model))
        # Summed on the device: no wait for it at each step.
        state.loss_sum += loss * len(images)
        state.images += len(images)
        state.step += 1
        state.seconds += time.perf_counter() - begun
        after_step()
        begun = time.perf_counter()
    loss_sum = accelerator.reduce(state.loss_sum).item()
    return loss_sum / (state.images * accelerator.num_processes)


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


def _judged(training: Training) -> dict:
    """Judge the averaged weights on Validation, as it is and degraded; calibrate them there too."""
    for buffer in training.averaged.buffers():  # the main process's: those that are saved
        broadcast(buffer)
    labels, logits = evaluate_epoch(
        training.averaged.module, training.validation_loader, training.accelerator
    )
    # In float64, as the evaluation scores them: small margins would end in ties.
    margin = (logits[:, 1] - logits[:, 0]).astype("float64")
    clean = len(training.validation_loader.dataset.datasets[0])
    degraded = metrics.ranking_metrics(labels[clean:], expit(margin[clean:]))
    labels, margin = labels[:clean], margin[:clean]
    judged = metrics.all_metrics(labels, expit(margin))
    temperature = metrics.fit_temperature(labels, margin)
    return {
        "accuracy": judged["accuracy"],
        "precision": judged["precision"],
        "recall": judged["recall"],
        "f1score": judged["f1"],
        "validation_loss": judged["log_loss"],
        "auc": judged["auc"],
        "degraded_auc": degraded["auc"],
        "temperature": temperature,
        "threshold": metrics.choose_threshold(labels, expit(margin / temperature)),
    }
