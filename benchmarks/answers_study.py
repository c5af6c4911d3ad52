"""What it is worth not to answer: plain calls, a band of doubt, and unstable scores.

    python benchmarks/answers_study.py --data SET [--challenge DIR] [--other DIR] RUN...

For every model below RUN: the band of scores is chosen on SET's Validation (as it is and degraded,
stats/abstention.py), and Test of each data set is scored with the variants of inference/verdict.py.
Prints, as Markdown, the mean over the models of the share answered, of wrong answers, and of Real
images called Fake and Fake ones called Real; with several models their standard deviation. `gain`
is the fall of the share of wrong answers against plain calls, with a paired 95 % interval over the
images (bootstrap, 1,000 resamples, all models together).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dfd_utils.data.folder import DataFolder
from dfd_utils.inference.verdict import VARIANTS, with_variants
from dfd_utils.models.scoring import apply_temperature
from dfd_utils.models.trained import TrainedModel, find_models
from dfd_utils.stats.abstention import answer_rates, choose_band
from dfd_utils.training.validation import validation_views

RULES = ("plain", "band", "variants", "band and variants")
RATES = ("answered", "wrong", "real_called_fake", "fake_called_real")


def main() -> None:
    """Score, judge by each rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--challenge", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options = parser.parse_args()
    data = DataFolder(options.data.absolute())
    tests = {"Test": data}
    for name in ("challenge", "other"):
        if path := getattr(options, name):
            tests[name] = DataFolder(path.absolute())
    answers = {}  # (data set, rule) to a table: an image a row, a model a column
    labels = {}
    for model in find_models(*options.runs):
        band = model_band(model, data)
        print(f"{model.folder}: threshold {model.description.threshold:.3f}, band {band}")
        for name, test in tests.items():
            labels[name], scores = scores_with_variants(model, test)
            for rule in RULES:
                answers.setdefault((name, rule), []).append(judge(model, scores, band, rule))
    print(summary(labels, answers))


def model_band(model: TrainedModel, data: DataFolder) -> tuple[float, float] | None:
    """Return the band that training chooses, of a model that may be older than bands are."""
    tables = [model.score(view) for view in validation_views(data, model.transform)]
    table = pd.concat(tables)
    return choose_band(table["label"], table["score"], model.description.threshold)


def scores_with_variants(model: TrainedModel, data: DataFolder) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of Test, `[N]`, and the scores of its images and variants, `[N, 1 + V]`."""
    columns = []
    for version in range(1 + len(VARIANTS)):
        dataset = data.split("Test", partial(_version, model.transform, version))
        table = model.score(dataset)
        columns.append(apply_temperature(table["logit"], model.description.temperature))
    return table["label"].to_numpy(), np.stack(columns, axis=1)


def _version(transform: object, version: int, image: torch.Tensor) -> torch.Tensor:
    return transform(with_variants(image, version)[version])


def judge(
    model: TrainedModel, scores: np.ndarray, band: tuple[float, float] | None, rule: str
) -> np.ndarray:
    """Return the answers by a rule: 0, 1, or -1 for none."""
    threshold = model.description.threshold
    answers = (scores[:, 0] >= threshold).astype(int)
    if "band" in rule and band:
        answers[(band[0] <= scores[:, 0]) & (scores[:, 0] < band[1])] = -1
    if "variants" in rule:
        answers[(scores.min(axis=1) < threshold) & (threshold <= scores.max(axis=1))] = -1
    return answers


def summary(labels: dict, answers: dict) -> str:
    """Return the table as Markdown."""
    lines = ["| images | rule | " + " | ".join(RATES) + " | gain |", "|---" * 7 + "|"]
    for (name, rule), columns in answers.items():
        rates = pd.DataFrame([
            {key: value[0] for key, value in answer_rates(labels[name], column).items()}
            for column in columns
        ])  # fmt: skip
        spread = rates.std().fillna(0)
        cells = [f"{100 * rates[r].mean():.1f} ± {100 * spread[r]:.1f} %" for r in RATES]
        if rule == "plain":
            cells.append("")
        else:
            gain = paired_gain(labels[name], answers[name, "plain"], columns)
            cells.append("{:+.1f} [{:+.1f}, {:+.1f}] points".format(*(100 * x for x in gain)))
        lines.append(f"| {name} | {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired_gain(
    labels: np.ndarray, plain: list[np.ndarray], chosen: list[np.ndarray]
) -> tuple[float, float, float]:
    """Return by how much the share of wrong answers falls: value, low, high."""
    rng = np.random.default_rng(0)

    def wrong_share(answers: list[np.ndarray], index: np.ndarray) -> float:
        parts = [column[index] for column in answers]
        wrong = [(part >= 0) & (part != labels[index]) for part in parts]
        return np.sum(wrong) / max(1, np.sum([part >= 0 for part in parts]))

    everything = np.arange(len(labels))
    draws = [everything, *rng.integers(len(labels), size=(1000, len(labels)))]
    gains = [wrong_share(plain, index) - wrong_share(chosen, index) for index in draws]
    return gains[0], *np.quantile(gains[1:], [0.025, 0.975])


if __name__ == "__main__":
    main()
