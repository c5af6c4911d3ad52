"""The baseline, and its fusion with a network: fitted in seconds, kept like a trained network."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset

from dfd_utils.config import SPLITS, Profile, UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.loader import data_loader
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.inputs import dct_input
from dfd_utils.models.registry import BASELINE, FUSION, create_fusion, create_model
from dfd_utils.models.scoring import logit_margins
from dfd_utils.models.trained import TrainedModel, best_network, find_models
from dfd_utils.models.weights import save_weights
from dfd_utils.runtime.distributed import run_on_main
from dfd_utils.training.run_folder import (
    build_run_config,
    check_resumable,
    is_complete,
    recorded_exclusions,
    run_lock,
    write_history,
    write_run_config,
)
from dfd_utils.training.validation import CHOSEN, validation_metrics, validation_views

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression: the larger, the freer
FAMILIAR_SHARE = 0.95  # of Validation, on which the baseline has a say in the fusion
BATCH = 64


def fit_baseline(
    data: DataFolder,
    out: Path,
    log: Callable[[str], None] = print,
    num_workers: int | None = None,
) -> pd.DataFrame:
    """Fit the baseline and return its history, of one row; a complete one is only read.

    Logistic regression on standardised block-DCT statistics of Train; C is the one with the highest
    AUC on Validation, where temperature and threshold are fitted, too. `num_workers` processes
    read the images; None lets the machine decide.

    Raises:
        UserError: as `train.fit`.
    """
    profile = Profile(
        BASELINE, image_size=0, epochs=1, batch_size=BATCH, lr=0.0, precision="fp32",
        num_workers=num_workers,
    )  # fmt: skip

    def fit() -> pd.DataFrame:
        with run_lock(out):
            kept = recorded_exclusions(out, data, log)
            config = build_run_config(BASELINE, kept, profile, "none")
            check_resumable(out, config)
            if is_complete(out, profile):
                log(f"{out.name}: already trained, nothing to do")
            else:
                write_run_config(out, config, kept)
                model, row = _fit_baseline(kept, num_workers)
                _save(model, row, out, ModelDescription(BASELINE, image_size=0), log)
            return TrainedModel(out).history

    return run_on_main(fit)


def add_baseline(
    run: Path, data: DataFolder, log: Callable[[str], None] = print
) -> list[TrainedModel]:
    """Fit the baseline, and its fusion with the best network, into the folder of a run.

    The best network is the one with the highest AUC on Validation. Returns the run's networks, the
    baseline and the fusion; what exists already is only read.

    Raises:
        UserError: as `train.fit`, or the run has no network.
    """
    models = find_models(run)
    best = best_network(models)
    networks = [model for model in models if model.is_network]
    folders = run / BASELINE, run / f"{best.name}{FUSION}"
    fit_baseline(data, folders[0], log)
    fit_fusion(best, TrainedModel(folders[0]), data, folders[1], log)
    return [*networks, *map(TrainedModel, folders)]


def _fit_baseline(data: DataFolder, num_workers: int | None) -> tuple[nn.Module, dict]:
    start = time.perf_counter()
    sets = data.split(SPLITS[0], dct_input), *validation_views(data, dct_input)
    (statistics, labels), *views = (read_statistics(part, num_workers) for part in sets)
    (clean, targets), (degraded, degraded_targets) = views
    scaler = StandardScaler().fit(statistics)
    scaled, scaled_clean = scaler.transform(statistics), scaler.transform(clean)
    fitted = []
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=2000).fit(scaled, labels)
        fitted.append(
            (roc_auc_score(targets, regression.decision_function(scaled_clean)), regression)
        )
    _, best = max(fitted, key=lambda entry: entry[0])
    model = create_model(BASELINE)
    _set(model.backbone["linear"], weight=best.coef_, bias=best.intercept_)
    _set(model.backbone["scaler"], mean=scaler.mean_, scale=scaler.scale_)
    margins, *validation = (_margins(model, part) for part in (statistics, clean, degraded))
    metrics = validation_metrics(targets, validation[0], degraded_targets, validation[1])
    seconds = time.perf_counter() - start
    loss = float(np.logaddexp(0, np.where(labels == 1, -margins, margins)).mean())
    return model, _row(metrics, loss, len(labels) / seconds, seconds)


def read_statistics(
    dataset: Dataset, num_workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of a data set with the transform `dct_input`.

    The statistics are float32 `[N, 576]`, the labels int `[N]`.
    """
    batches = list(data_loader(dataset, BATCH, num_workers=num_workers))
    statistics = torch.cat([batch.flatten(1) for batch, _ in batches]).numpy()
    return statistics, torch.cat([labels for _, labels in batches]).numpy()


def fit_fusion(
    network: TrainedModel, baseline: TrainedModel, data: DataFolder, out: Path,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:  # fmt: skip
    """Fuse a trained network and the baseline into one model; return its history, of one row.

    The margin of its logits is a weighted sum of both calibrated margins and a constant, by a
    logistic regression on both views of Validation. The baseline has no say on images whose
    statistics are further from those of Train than `FAMILIAR_SHARE` of Validation. Kept in `out`
    and fitted again whenever one of the two has changed.

    Raises:
        UserError: as `train.fit`, or the two were trained on other data.
    """
    if network.config["data_fingerprint"] != baseline.config["data_fingerprint"]:
        raise UserError(f"{out}: {network.name} and {baseline.name} were trained on other images")
    members = [network.fingerprint, baseline.fingerprint]
    start = time.perf_counter()
    with ExitStack() as stack:

        def is_fitted() -> bool:
            stack.enter_context(run_lock(out))
            done = (out / "model.json").is_file()
            return done and TrainedModel(out).config.get("members") == members

        if run_on_main(is_fitted):
            run_on_main(log, f"{out.name}: already fitted, nothing to do")
        else:
            kept = recorded_exclusions(network.folder, data, log)
            views = validation_views(kept, network.transform)
            scored = [network.score(view)["logit"].to_numpy() for view in views]

            def fit() -> None:
                (out / "model.json").unlink(missing_ok=True)
                config = network.config | {"model": network.name + FUSION, "members": members}
                write_run_config(out, config, kept)
                model, row = _fit_fusion(network, baseline, kept, scored, start)
                description = dataclasses.replace(network.description, fused=True)
                _save(model, row, out, description, log)

            run_on_main(fit)
        return run_on_main(lambda: TrainedModel(out).history)


def _fit_fusion(
    network: TrainedModel,
    baseline: TrainedModel,
    data: DataFolder,
    scored: list[np.ndarray],
    start: float,
) -> tuple[nn.Module, dict]:
    """Return the fused model and its row of the history.

    `scored` has the network's margins on both views of Validation; `start` is when it began.
    """
    fused = create_fusion(network.description.architecture)
    parts = fused.backbone
    parts["network"].load_state_dict(network.load().state_dict())
    parts["baseline"].load_state_dict(baseline.load().state_dict())
    views = [read_statistics(view) for view in validation_views(data, dct_input)]
    distances = [parts["baseline"].distance(torch.from_numpy(view)).numpy() for view, _ in views]
    limit = np.quantile(distances[0], FAMILIAR_SHARE)
    margins = [
        np.column_stack([own, _margins(parts["baseline"], view) * (distance <= limit)])
        for own, (view, _), distance in zip(scored, views, distances, strict=True)
    ]
    labels = [targets for _, targets in views]
    temperatures = np.array([model.description.temperature for model in (network, baseline)])
    both = LogisticRegression().fit(np.concatenate(margins) / temperatures, np.concatenate(labels))
    weights = both.coef_[0] / temperatures
    # Degraded images share the order of the scores, but the constant has to fit those as they are.
    own = LogisticRegression(C=1e6).fit((margins[0] @ weights)[:, None], labels[0])
    weights, bias = weights * own.coef_[0, 0], own.intercept_[0]
    _set(parts["mix"].linear, weight=weights[None], bias=own.intercept_)
    _set(parts["mix"], limit=limit)
    clean, degraded = (part @ weights + bias for part in margins)
    metrics = validation_metrics(labels[0], clean, labels[1], degraded)
    seconds = time.perf_counter() - start
    seconds += sum(model.history["seconds"].sum() for model in (network, baseline))
    rate = network.history["images_per_second"].median()
    return fused, _row(metrics, metrics["validation_loss"], rate, seconds)


@torch.inference_mode()
def _margins(model: nn.Module, statistics: np.ndarray) -> np.ndarray:
    return logit_margins(model(torch.from_numpy(statistics)).numpy())


def _set(module: nn.Module, **values: ArrayLike) -> None:
    """Set parameters and buffers of a module, by name."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.as_tensor(value))


def _row(metrics: dict, loss: float, rate: float, seconds: float) -> dict:
    timing = {"lr": 0.0, "images_per_second": rate, "seconds": seconds}
    return {"epoch": 1, "training_loss": loss, **metrics, **timing}


def _save(
    model: nn.Module, row: dict, out: Path, description: ModelDescription, log: Callable
) -> None:
    write_history([row], out)
    save_weights(model, out / "model.safetensors")
    chosen = {name: row[name] for name in CHOSEN}
    dataclasses.replace(description, **chosen, epoch=1, epochs=1).write(out / "model.json")
    log(
        f"{out.name}: Validation AUC {row['auc']:.3f} (degraded {row['degraded_auc']:.3f}), "
        f"accuracy {row['accuracy']:.3f}, {row['seconds']:.0f} s"
    )
