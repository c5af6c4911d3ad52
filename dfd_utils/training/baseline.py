"""The baseline, and its fusion with a network: fitted in seconds, kept like a trained network."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset

from dfd_utils.config import SPLITS, Profile, UserError, get_profile
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.loader import data_loader
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.inputs import dct_input
from dfd_utils.models.registry import BASELINE, FUSION, create_fusion, create_model
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
from dfd_utils.training.validation import validation_metrics, validation_views

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression: the larger, the freer
BATCH = 64


def fit_baseline(
    data: DataFolder, out: Path, profile: Profile, log: Callable[[str], None] = print
) -> pd.DataFrame:
    """Fit the baseline and return its history, of one row; a complete one is only read.

    Logistic regression on standardised block-DCT statistics of Train; C is the one with the highest
    AUC on Validation, where temperature and threshold are fitted, too.
    Of the profile, only `num_workers` has an effect.

    Raises:
        UserError: as `train.fit`.
    """
    own = Profile(
        BASELINE, image_size=0, epochs=1, batch_size=BATCH, lr=0.0, precision="fp32",
        num_workers=profile.num_workers,
    )  # fmt: skip

    def fit() -> pd.DataFrame:
        with run_lock(out):
            kept = recorded_exclusions(out, data, log)
            config = build_run_config(BASELINE, kept, own, "none")
            check_resumable(out, config)
            if is_complete(out, own):
                log(f"{out.name}: already trained, nothing to do")
            else:
                write_run_config(out, config, kept)
                model, row = _fit_baseline(kept, own)
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
    networks = [m for m in models if m.has_heat_maps and not m.description.fused]
    folders = run / BASELINE, run / f"{best.name}{FUSION}"
    fit_baseline(data, folders[0], get_profile("sample"), log)
    fit_fusion(best, TrainedModel(folders[0]), data, folders[1], log)
    return [*networks, *map(TrainedModel, folders)]


def _fit_baseline(data: DataFolder, profile: Profile) -> tuple[nn.Module, dict]:
    start = time.perf_counter()
    sets = data.split(SPLITS[0], dct_input), *validation_views(data, dct_input)
    (statistics, labels), *views = (_read(part, profile.num_workers) for part in sets)
    scaler = StandardScaler().fit(statistics)
    (clean, targets), (degraded, degraded_targets) = views
    fitted = []
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=2000)
        regression.fit(scaler.transform(statistics), labels)
        weights = regression.coef_[0] / scaler.scale_
        bias = regression.intercept_[0] - weights @ scaler.mean_
        fitted.append((roc_auc_score(targets, clean @ weights), weights, bias))
    _, weights, bias = max(fitted, key=lambda entry: entry[0])
    model = create_model(BASELINE)
    _set_linear(model.backbone, weights, bias)
    metrics = validation_metrics(
        targets, clean @ weights + bias, degraded_targets, degraded @ weights + bias
    )
    seconds = time.perf_counter() - start
    margins = statistics @ weights + bias
    loss = float(np.logaddexp(0, np.where(labels == 1, -margins, margins)).mean())
    return model, _row(metrics, loss, len(labels) / seconds, seconds)


def _read(dataset: Dataset, num_workers: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistics, float32 `[N, 576]`, and labels, `[N]`, of all images."""
    batches = list(data_loader(dataset, BATCH, num_workers=num_workers))
    statistics = torch.cat([batch.flatten(1) for batch, _ in batches]).numpy()
    return statistics, torch.cat([labels for _, labels in batches]).numpy()


def fit_fusion(
    network: TrainedModel, baseline: TrainedModel, data: DataFolder, out: Path,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:  # fmt: skip
    """Fuse a trained network and the baseline into one model; return its history, of one row.

    The margin of its logits is a weighted sum of both calibrated margins and a constant, by a
    logistic regression on both views of Validation. Kept in `out` and fitted again whenever one of
    the two has changed.

    Raises:
        UserError: as `train.fit`, or the two were trained on other data or exclusions.
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
            scored = [
                [model.score(view) for view in validation_views(kept, model.transform)]
                for model in (network, baseline)
            ]

            def fit() -> None:
                (out / "model.json").unlink(missing_ok=True)
                config = network.config | {"model": network.name + FUSION, "members": members}
                write_run_config(out, config, kept)
                model, row = _fit_fusion(network, baseline, scored, start)
                description = dataclasses.replace(network.description, fused=True)
                _save(model, row, out, description, log)

            run_on_main(fit)
        return run_on_main(lambda: TrainedModel(out).history)


def _fit_fusion(
    network: TrainedModel, baseline: TrainedModel, scored: list[list[pd.DataFrame]], start: float
) -> tuple[nn.Module, dict]:
    """Return the fused model and its row of the history.

    `scored` has the results of `score` for both models on both views; `start` is when it began.
    """
    labels = [table["label"].to_numpy() for table in scored[0]]
    margins = [
        np.column_stack([t["logit"] for t in tables]) for tables in zip(*scored, strict=True)
    ]
    members = network, baseline
    temperatures = np.array([model.description.temperature for model in members])
    both = LogisticRegression().fit(np.concatenate(margins) / temperatures, np.concatenate(labels))
    weights = both.coef_[0] / temperatures
    # Degraded images share the order of the scores, but the constant has to fit those as they are.
    own = LogisticRegression(C=1e6).fit((margins[0] @ weights)[:, None], labels[0])
    weights, bias = weights * own.coef_[0, 0], own.intercept_[0]
    fused = create_fusion(network.description.architecture)
    fused.backbone["network"].load_state_dict(network.load().state_dict())
    fused.backbone["baseline"].load_state_dict(baseline.load().state_dict())
    _set_linear(fused.backbone["mix"], weights, bias)
    clean, degraded = (part @ weights + bias for part in margins)
    metrics = validation_metrics(labels[0], clean, labels[1], degraded)
    seconds = time.perf_counter() - start
    seconds += sum(model.history["seconds"].sum() for model in members)
    rate = network.history["images_per_second"].median()
    return fused, _row(metrics, metrics["validation_loss"], rate, seconds)


def _set_linear(layer: nn.Linear, weights: np.ndarray, bias: float) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights)[None])
        layer.bias.fill_(bias)


def _row(metrics: dict, loss: float, rate: float, seconds: float) -> dict:
    timing = {"lr": 0.0, "images_per_second": rate, "seconds": seconds}
    return {"epoch": 1, "training_loss": loss, **metrics, **timing}


def _save(
    model: nn.Module, row: dict, out: Path, description: ModelDescription, log: Callable
) -> None:
    write_history([row], out)
    save_weights(model, out / "model.safetensors")
    chosen = {name: row[name] for name in ("temperature", "threshold")}
    dataclasses.replace(description, **chosen, epoch=1, epochs=1).write(out / "model.json")
    log(
        f"{out.name}: Validation AUC {row['auc']:.3f} (degraded {row['degraded_auc']:.3f}), "
        f"accuracy {row['accuracy']:.3f}, {row['seconds']:.0f} s"
    )
