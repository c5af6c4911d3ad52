"""What training on degraded images is worth: the same training with and without them."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dfd_utils import config, train
from dfd_utils.compare import delong, delong_interval, read_predictions
from dfd_utils.evaluate import evaluate
from dfd_utils.plots import axes_grid
from dfd_utils.resampling import TAILS, metric_interval, resample_counts
from dfd_utils.robustness import degraded_predictions
from dfd_utils.run import read_configuration
from dfd_utils.words import interval, title_of

WITHOUT, WITH, DIFFERENCE = "without degraded images", "with degraded images", "with less without"
SHARE = 0.8  # of the training images that are degraded, where the run has none
STYLES = {
    WITHOUT: {"color": "#000000", "marker": "o", "linestyle": ":"},
    WITH: {"color": "#009E73", "marker": "s", "linestyle": "-"},
}


def train_both(folder: Path, data: Path) -> dict[str, Path]:
    """Train a run's model once more with degraded images, or without if it had them.

    All other settings are the run's own. The second model goes to `build/ablations/`, where only
    this comparison sees it. Return both folders by WITHOUT and WITH.

    Raises:
        UserError: no trained model in `folder`; as train.fit.
    """
    title_of(folder)
    begun = read_configuration(folder)
    settings, trained_on = begun["settings"], begun["data_fingerprint"]
    other = 0.0 if settings["degradation_probability"] else SHARE
    profile = config.get_profile(**settings | {"degradation_probability": other})
    # Named by all it depends on: a changed run gets another second training.
    key = hashlib.sha256(f"{profile} {trained_on}".encode()).hexdigest()[:8]
    second = config.BUILD_DIR / "ablations" / f"{folder.parent.name}-{key}" / folder.name
    train.fit(folder.name, data, second, profile)
    return {WITHOUT: folder, WITH: second} if other else {WITHOUT: second, WITH: folder}


def severity_auc(
    pair: dict[str, Path], data: Path, images: int = 200, resamples: int = 2000
) -> pd.DataFrame:
    """Return the AUC by severity, a mean over all degradations, of both trainings.

    Args:
        pair: as of `train_both`.
        data: its data set, of which `images` Validation images are degraded in every way.
        resamples: of the stratified bootstrap over images, the same for all rows and columns.

    Returns:
        A row for each severity of WITHOUT, WITH and DIFFERENCE: training, severity (0: as they
        are), auc, low, high, and lost, lost_low, lost_high: the AUC at severity 0 less this one.
    """
    degraded = degraded_predictions(list(pair.values()), data, images=images)
    wins = {}
    for training, folder in pair.items():
        for severity, part in degraded[folder].groupby("severity"):
            kinds = [_wins(table) for _, table in part.groupby("degradation")]
            wins[training, severity] = np.mean(kinds, axis=0)
    labels = np.repeat([0, 1], next(iter(wins.values())).shape)
    counts = resample_counts(labels, resamples, np.random.default_rng(0))
    real, fake = counts[:, labels == 0], counts[:, labels == 1]
    # The value, then those of the resamples.
    means = {
        key: np.append(shares.mean(), ((real @ shares) * fake).sum(axis=1) / shares.size)
        for key, shares in wins.items()
    }
    pairs = min(real.shape[1], fake.shape[1])
    severities = sorted({severity for _, severity in means})
    means |= {(DIFFERENCE, s): means[WITH, s] - means[WITHOUT, s] for s in severities}
    rows = []
    for (training, severity), auc in means.items():
        ends = _difference(auc) if training == DIFFERENCE else _auc(auc, pairs)
        rows.append((training, severity, *ends, *_difference(means[training, 0] - auc)))
    columns = ["training", "severity", "auc", "low", "high", "lost", "lost_low", "lost_high"]
    return pd.DataFrame(rows, columns=columns)


def _wins(table: pd.DataFrame) -> np.ndarray:
    """Return which Fake (column) has a higher score than which Real (row): its mean is the AUC."""
    real, fake = (table["score"].to_numpy()[table["label"] == label] for label in (0, 1))
    return (fake > real[:, None]) + 0.5 * (fake == real[:, None])


def _auc(auc: np.ndarray, pairs: int) -> tuple[float, float, float]:
    return auc[0], *metric_interval("auc", auc[0], auc[1:], pairs)


def _difference(auc: np.ndarray) -> tuple[float, float, float]:
    return auc[0], *np.quantile(auc[1:], TAILS)


def auc_on_test(pair: dict[str, Path], data: Path) -> pd.DataFrame:
    """Return auc, low and high (DeLong) on Test of both trainings and of their difference."""
    places = {
        training: evaluate([folder], data)["folder"].item() for training, folder in pair.items()
    }
    tables = {t: read_predictions(f"{place}/predictions_Test.csv") for t, place in places.items()}
    rows = {t: delong_interval(table["label"], table["score"]) for t, table in tables.items()}
    paired = delong(tables[WITH]["label"], tables[WITH]["score"], tables[WITHOUT]["score"])
    rows[DIFFERENCE] = paired["difference"], paired["low"], paired["high"]
    return pd.DataFrame(rows, index=["auc", "low", "high"]).T


def ablation_table(severities: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return both trainings and their difference (rows): AUC by severity, and on Test."""
    shown = severities.assign(
        auc=[interval(row.auc, row.low, row.high) for row in severities.itertuples()],
        column=[f"severity {s}" if s else "as they are" for s in severities["severity"]],
    )
    wide = shown.pivot(index="training", columns="column", values="auc")
    wide = wide[shown["column"].unique()].loc[list(test.index)]
    wide["Test"] = [interval(row.auc, row.low, row.high) for row in test.itertuples()]
    return wide.rename_axis(None).rename_axis(None, axis=1)


def ablation_curves(severities: pd.DataFrame, test: pd.DataFrame) -> Figure:
    """Mean AUC by severity on Validation, and AUC on Test, with 95 % intervals, by training."""
    figure, (curves, point) = axes_grid(2, height=2.4, sharey=True, width_ratios=[4, 1])
    for x, (training, style) in enumerate(STYLES.items()):
        part = severities[severities["training"] == training]
        curves.plot(part["severity"], part["auc"], label=training, markersize=4, **style)
        curves.fill_between(
            part["severity"], part["low"], part["high"], alpha=0.15, color=style["color"],
            linewidth=0,
        )  # fmt: skip
        row = test.loc[training]
        point.vlines(x, row["low"], row["high"], color=style["color"], linewidth=1)
        point.plot(x, row["auc"], color=style["color"], marker=style["marker"], markersize=4)
    curves.set(xlabel="severity (0: as they are)", ylabel="AUC", title="Validation, degraded")
    curves.set_xticks(sorted(severities["severity"].unique()))
    point.set(title="Test", xlim=(-0.7, 1.7), xticks=[0, 1], xticklabels=["without", "with"])
    curves.legend(fontsize=7, loc="lower left")
    return figure


def ablation_words(title: str, severities: pd.DataFrame, test: pd.DataFrame) -> str:
    """Say what degraded images in training changed, as a Markdown list."""
    known = sorted(severities["severity"].unique())
    severity = known[len(known) // 2]
    rows = severities[severities["severity"] == severity].set_index("training")
    lost = {t: interval(*rows.loc[t, ["lost", "lost_low", "lost_high"]]) for t in rows.index}
    auc = {t: interval(*test.loc[t]) for t in test.index}
    return (
        f"- Degradation at severity {severity} costs {title} {lost[WITHOUT]} of its AUC when it "
        f"was trained without degraded images, and {lost[WITH]} when it was trained with them; "
        f"the change, {lost[DIFFERENCE]}, is "
        f"{_clear(*rows.loc[DIFFERENCE, ['lost_low', 'lost_high']])}.\n"
        f"- On Test its AUC is {auc[WITHOUT]} without and {auc[WITH]} with them; the change, "
        f"{auc[DIFFERENCE]}, is {_clear(*test.loc[DIFFERENCE, ['low', 'high']])}. "
        "It is one training of each: another seed may move either."
    )


def _clear(low: float, high: float) -> str:
    how = "within what" if low <= 0 <= high else "more than"
    return f"{how} the choice of images explains"
