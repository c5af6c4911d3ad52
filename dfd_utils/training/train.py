"""Training: `fit`, with averaged weights, checkpoints and exact resume."""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import skip_first_batches
from accelerate.utils import broadcast

from dfd_utils.config import SPLITS, Profile, UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.image_io import describe_skipped
from dfd_utils.models.registry import BASELINE, FUSION, available_weights, get_architecture
from dfd_utils.models.scoring import logit_margins, predict_logits
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.distributed import process_state, run_on_main
from dfd_utils.training.autotune import autotune
from dfd_utils.training.baseline import fit_baseline, fit_fusion
from dfd_utils.training.checkpoint import (
    CheckpointWriter,
    TrainingState,
    checkpoints,
    load_checkpoint,
)
from dfd_utils.training.components import TrainingComponents, build_components
from dfd_utils.training.interruption import Action, Interrupted, StopMonitor
from dfd_utils.training.progress import Progress
from dfd_utils.training.run_folder import (
    REMEDY,
    build_run_config,
    check_resumable,
    finalize_run,
    has_saved,
    is_complete,
    log_epoch,
    recorded_exclusions,
    run_lock,
    save_epoch_model,
    with_recorded_settings,
    write_run_config,
)
from dfd_utils.training.validation import validation_metrics


def fit(
    model_name: str,
    data: DataFolder,
    out: Path,
    profile: Profile,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train a model and return its history, a row per epoch; a complete run is only read.

    The data set is audited first, and the images that the audit excludes are left out. After each
    epoch the averaged weights are evaluated on Validation; those of the best epoch (see
    `trained.best_epoch`) become the model, with a temperature and a threshold fitted on Validation.
    An interrupted run continues from its last checkpoint; on a CPU the result is bit-identical.

    Args:
        model_name: a key of `registry.MODELS`, or a network's name and "+linear_dct" for its
            fusion with the baseline; the two are trained beside `out`, unless they are there.
        data: the data set; no model is evaluated on Test.
        out: the model's folder; receives config.json, excluded.csv, history.csv,
            model.safetensors, model.json and checkpoint/.
        profile: the settings.
        log: called with each line of progress.

    Raises:
        UserError: bad data or settings, a run of other settings or data in `out`, another
            process training there, or a loss that is no longer finite.
        RunInterrupted: SIGTERM or the time limit; the same call continues the run.
        KeyboardInterrupt: Ctrl-C; the same call continues the run.
    """
    get_architecture(model_name.removesuffix(FUSION))
    data.check_layout()
    if model_name == BASELINE:
        return fit_baseline(data, out, log, profile.num_workers)
    if model_name.endswith(FUSION):
        return _fit_members_and_fuse(model_name.removesuffix(FUSION), data, out, profile, log)
    processes = process_state()
    if not processes.is_main_process:
        log = _ignore
    if profile.batch_size % processes.num_processes:
        raise UserError(
            f"setting batch_size: {profile.batch_size} images cannot be shared equally by "
            f"{processes.num_processes} processes; choose a multiple"
        )
    with ExitStack() as stack:

        def open_run() -> tuple[Profile, frozenset[str], bool]:
            stack.enter_context(run_lock(out))
            return _open_run(model_name, data, out, profile, log)

        profile, exclusions, complete = run_on_main(open_run)
        if complete:
            log(f"{out.name}: already trained, nothing to do")
        else:
            data = data.with_exclusions(exclusions)
            with StopMonitor(profile) as monitor:
                training = build_components(model_name, data, profile)
                stack.callback(training.shutdown_workers)
                state = TrainingState(training.accelerator)
                with CheckpointWriter(training, state, out, log) as writer:
                    _train(training, state, writer, profile, monitor, log)
                    writer.wait()
                    run_on_main(finalize_run, state, out, training, profile)
                    writer.announce()
                action = monitor.next_action(0)
                if action >= Action.STOP_SIGTERM:
                    monitor.end(action, f"{out.name} is trained; the same command continues")
        return run_on_main(lambda: TrainedModel(out).history)


def _fit_members_and_fuse(
    network: str, data: DataFolder, out: Path, profile: Profile, log: Callable[[str], None]
) -> pd.DataFrame:
    """Train the network and the baseline beside `out`, unless they are there, and fuse them."""
    if network == BASELINE:
        raise UserError(f"{BASELINE}{FUSION}: name a network to fuse the baseline with")
    folders = {name: out.with_name(name) for name in (network, BASELINE)}
    for name, folder in folders.items():
        fit(name, data, folder, profile, log)
    return fit_fusion(*map(TrainedModel, folders.values()), data, out, log)


def _ignore(line: str) -> None:
    pass


def _open_run(
    model_name: str, data: DataFolder, out: Path, profile: Profile, log: Callable[[str], None]
) -> tuple[Profile, frozenset[str], bool]:
    """Return the resolved settings, the images to leave out, and whether the run is complete."""
    requested_weights = profile.weights
    profile = with_recorded_settings(out, profile)
    complete = is_complete(out, profile)
    if not complete:  # before the audit and the speed trials, which take longer
        weights = available_weights(model_name, profile.weights, log)
        profile = dataclasses.replace(profile, weights=weights)
    counts = ", ".join(f"{split} {len(data.excluded(split))}" for split in SPLITS)
    log(
        f"{data.name}: the audit excludes {counts} images (exclude.csv in {data.audit_folder.name})"
    )
    if line := describe_skipped(data.skipped):
        log(f"{data.name}: {line}")
    data = recorded_exclusions(out, data, log)
    if not complete:
        profile = autotune(model_name, profile, log)
    config = build_run_config(model_name, data, profile, requested_weights)
    check_resumable(out, config)
    if not complete:
        write_run_config(out, config, data)
    return profile, data.exclusions, complete


def _train(
    training: TrainingComponents,
    state: TrainingState,
    writer: CheckpointWriter,
    profile: Profile,
    monitor: StopMonitor,
    log: Callable[[str], None],
) -> None:
    accelerator, model, out = training.accelerator, training.ema_model.module, writer.out
    load_checkpoint(training, state, out, log)
    steps = len(training.train_loader)
    progress_log = log if accelerator.is_main_process else None
    progress = Progress(
        out.name, profile.epochs, steps, profile.batch_size, monitor.deadline, progress_log
    )

    def save(on_saved: Callable[[], None] = lambda: None) -> None:
        writer.save(on_saved)
        monitor.saved()

    def stop(action: Action | None = None) -> None:
        progress.end()
        save()
        writer.wait()
        last = next(iter(checkpoints(out)), None)
        start = f"checkpoint {last.name}" if last else "the beginning"
        monitor.end(
            action,
            f"{out.name} is in epoch {state.epoch}/{profile.epochs}, step {state.step}/{steps}; "
            f"the same command continues from {start}",
        )

    def after_step() -> None:
        progress.step(state)
        writer.poll()
        action = monitor.next_action(state.step)
        if action == Action.SAVE:
            save()
        elif action != Action.CONTINUE:
            stop(action)

    while len(state.rows) < profile.epochs:
        progress.begin(state)
        training_loss = train_one_epoch(training, state, after_step)
        progress.end()
        start = time.perf_counter()
        try:
            if not math.isfinite(training_loss):
                raise FloatingPointError("the loss is not finite")
            with monitor.interruptible():
                row = _validate(training)
        except Interrupted:
            stop()
        except FloatingPointError as error:
            writer.wait()
            remedy = f"lower lr, and {REMEDY}" if run_on_main(has_saved, out) else "lower lr"
            raise UserError(f"{out}: {error} in epoch {state.epoch}; {remedy}") from error
        row = {"epoch": state.epoch, "training_loss": training_loss} | row
        row["lr"] = training.optimizer.param_groups[0]["lr"]
        row["images_per_second"] = steps * profile.batch_size / state.seconds
        saving = state.checkpoint_seconds
        row["seconds"] = state.seconds + saving + time.perf_counter() - start
        state.add(row, model)
        if profile.keep_epochs:
            run_on_main(save_epoch_model, model, row, out, training.model_name, profile)
        state.begin_epoch()
        # An epoch is announced when its checkpoint is complete: from then on it cannot be lost.
        save(partial(log_epoch, list(state.rows), saving, out, profile.epochs, log))
        action = monitor.next_action(0)
        if action > Action.SAVE and len(state.rows) < profile.epochs:
            stop(action)


def train_one_epoch(
    training: TrainingComponents,
    state: TrainingState,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Train to the end of the running epoch; return the mean loss over its images.

    A resumed epoch begins after the batches that the state has counted, whose images are not read
    again. `after_step` is called when a step is done and counted in the state.
    """
    accelerator, loader = training.accelerator, training.train_loader
    loader.dataset.epoch = state.epoch
    loader.set_epoch(state.epoch)
    training.model.train()
    batches = skip_first_batches(loader, state.step) if state.step else loader
    start = time.perf_counter()
    for images, labels in batches if state.step < len(loader) else ():
        training.optimizer.zero_grad(set_to_none=True)
        loss = training.accumulate_gradients(*training.apply_cutmix(images, labels, state.step))
        training.optimizer.step()
        training.lr_scheduler.step()
        training.ema_model.update_parameters(accelerator.unwrap_model(training.model))
        # Summed on the device, to avoid waiting for it at each step.
        state.loss_sum += loss * len(images)
        state.images += len(images)
        state.step += 1
        state.seconds += time.perf_counter() - start
        after_step()
        start = time.perf_counter()
    loss_sum = accelerator.reduce(state.loss_sum).item()
    return loss_sum / (state.images * accelerator.num_processes)


def _validate(training: TrainingComponents) -> dict:
    """Evaluate the averaged weights on both views of Validation, and calibrate them there.

    Raises:
        FloatingPointError: an output of the model is not finite.
    """
    for buffer in training.ema_model.buffers():  # of the main process, which saves them
        broadcast(buffer)
    loader = training.validation_loader
    labels, logits = predict_logits(training.ema_model.module, loader, training.accelerator)
    margins = logit_margins(logits)
    if not np.isfinite(margins).all():
        raise FloatingPointError("an output of the model is not finite")
    clean = len(loader.dataset.datasets[0])
    return validation_metrics(labels[:clean], margins[:clean], labels[clean:], margins[clean:])
