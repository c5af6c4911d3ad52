"""The comparison in tables and sentences, and the verdict."""

import math
import re

import pandas as pd
from scipy.stats import norm, ttest_ind

POWER = 0.8  # with which a difference is to be shown, where it is told what that takes
# Standard errors that a true difference must measure to be shown at 5 % with that power.
NEEDED = float(norm.ppf(0.975) + norm.ppf(POWER))
# Of the AUC between seeds, taken where nothing is known about it: 0.02 to 0.04 were measured after
# 8 epochs on part of the sample (docs/benchmarks.md).
SEED_DEVIATION = 0.03
TESTS = {
    "AUC (p: DeLong)": ("auc_difference", "p"),
    "AUC (bootstrap)": ("auc_difference_bootstrap", None),
    "accuracy (p: McNemar)": ("accuracy_difference", "mcnemar"),
    "F1 (bootstrap)": ("f1_difference", None),
}


def pair_table(comparisons: list[dict]) -> pd.DataFrame:
    """Return the differences of `compare.compare_models`, a column a pair, with 95 % intervals.

    The last row tells on how many images only the first, and only the second model is right.
    """
    columns = {}
    for comparison in comparisons:
        pair, (first, second) = comparison["pair"], comparison["models"]
        shown = {}
        for name, (key, test) in TESTS.items():
            row = pair[key] | (pair["mcnemar"] if test == "mcnemar" else {})
            p = f", {_p(row['p'])}" if test else ""
            shown[name] = f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]{p}"
        shown["right alone"] = "{b:,} against {c:,}".format(**pair["mcnemar"])
        columns[f"{first} less {second}"] = shown
    return pd.DataFrame(columns)


def agreement_table(agreement: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return `compare.agreement` with printed names and shares."""
    names = ["both right", f"only {first}", f"only {second}", "both wrong"]
    shown = {
        title: [
            f"{count:,} ({share:.1%})"
            for count, share in zip(agreement[images], agreement[part], strict=True)
        ]
        for title, images, part in (
            ("all", "images", "share"),
            ("Real", "real_images", "real_share"),
            ("Fake", "fake_images", "fake_share"),
        )
    }
    return pd.DataFrame(shown, index=names)


def seed_table(seeds: pd.DataFrame) -> pd.DataFrame:
    """Return mean ± standard deviation over seeds of `runs.seed_metrics`, a row a model."""
    rows = {}
    for title, part in seeds.groupby("model", sort=False):
        shown = {"training seeds": ", ".join(map(str, part["seed"]))}
        for name, printed in (("auc", "AUC"), ("accuracy", "accuracy"), ("f1", "F1")):
            spread = f" ± {part[name].std():.3f}" if len(part) > 1 else " (one seed)"
            shown[printed] = f"{part[name].mean():.3f}{spread}"
        rows[title] = shown
    return pd.DataFrame(rows).T


def summarize_seeds(seeds: pd.DataFrame) -> str:
    """Say what the seeds tell about the two architectures, and how many it takes to decide.

    Their mean AUCs are compared by Welch's t interval (1947), where each has two seeds or more.
    """
    (a, first), (b, second) = seeds.groupby("model", sort=False)["auc"]
    difference = first.mean() - second.mean()
    alone = min(len(first), len(second)) < 2
    deviation = SEED_DEVIATION if alone else math.sqrt((first.var() + second.var()) / 2)
    takes = _seeds_needed(difference, deviation)
    if alone:
        return (
            "A single training says nothing of how far another seed would move a model: the "
            "tests of single runs ignore the variance of training. If the AUC varied between "
            f"seeds with a standard deviation of {SEED_DEVIATION} (assumed, not measured), {takes} "
            "of each model would show a true difference of the size seen here with 80 % power."
        )
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    shown = interval.low > 0 or interval.high < 0
    better, worse = (a, b) if difference > 0 else (b, a)
    outcome = (
        f"`{better}` is the better architecture than `{worse}` on these data"
        if shown
        else f"no difference between `{a}` and `{b}` is shown over the variance of training"
    )
    more = "" if shown else (
        f" With this spread, {takes} of each would show a true difference of the size seen here "
        "with 80 % power."
    )  # fmt: skip
    return (
        f"Over {len(first)} and {len(second)} seeds the mean AUC differs by {difference:+.4f}, "
        f"95 % interval {interval.low:+.4f} to {interval.high:+.4f} (Welch): {outcome}.{more}"
    )


def _seeds_needed(difference: float, deviation: float) -> str:
    if not difference:
        return "no number of seeds"
    needed = max(3.0, math.ceil(2 * (NEEDED * deviation / difference) ** 2))
    return f"about {needed:,.0f} seeds" if needed < 1000 else "over 1,000 seeds"


def cost_table(costs: dict[str, dict]) -> pd.DataFrame:
    """Return costs of models, a column a model."""
    shown = {
        title: {k: v if isinstance(v, str) else _short(v) for k, v in cost.items()}
        for title, cost in costs.items()
    }
    return pd.DataFrame(shown)


def summarize_costs(costs: dict[str, dict]) -> str:
    """Say which model is lighter, trained faster and scores faster, as a Markdown list."""
    lines = []
    for name, what in (
        ("parameters (million)", "million parameters"),
        ("GFLOPs an image", "GFLOPs an image"),
        ("training (min)", "minutes of training"),
        ("one image (ms)", "ms for one image"),
    ):
        (low, least), (high, most) = sorted((cost[name], title) for title, cost in costs.items())
        lines.append(
            f"- {what}: {least} {_short(low)}, {most} {_short(high)}, "
            f"{high / low:.1f} times as much."
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"


def conclusion(comparison: dict, seeds: pd.DataFrame | None = None) -> str:
    """Return what compare_models found, in a few sentences of Markdown.

    A winner is named only where the interval of the AUC difference (DeLong) excludes zero.
    """
    images, models, pair = (comparison[key] for key in ("images", "models", "pair"))
    a, b = ("`" + re.sub(r"[`|\s]+", " ", name) + "`" for name in models)
    auc_a, auc_b = (model["auc"]["value"] for model in models.values())
    value, low, high, p = (pair["auc_difference"][key] for key in ("value", "low", "high", "p"))
    first, second, auc_1, auc_2 = (a, b, auc_a, auc_b)
    if high < 0:  # b won: tell it from its side
        first, second, auc_1, auc_2, value, low, high = (b, a, auc_b, auc_a, -value, -high, -low)
    numbers = (
        f"AUC {_number(auc_1)} against {_number(auc_2)} on {images:,} images, difference "
        f"{_number(value)}, 95 % interval {_number(low)} to {_number(high)}, DeLong {_p(p)}"
    )
    if low > 0:
        sentences = [f"{first} ranks the images better than {second} ({numbers})."]
    else:
        sentences = [f"No difference in AUC between {a} and {b} is shown ({numbers})."]
        # The standard error shrinks with sqrt(n): how large must n be for the difference seen to
        # measure NEEDED of them?
        error = (high - low) / 2 / norm.ppf(0.975)
        if value:
            needed = min(images * (NEEDED * error / value) ** 2, 1e7)
            count = f"{'about' if needed < 1e7 else 'over'} {float(f'{needed:.2g}'):,.0f}"
            sentences.append(
                "The interval narrows with the square root of the number of images: to show a true "
                f"difference of the size seen here with 80 % power would take {count} test images."
            )
    b_only, c_only, p = (pair["mcnemar"][key] for key in ("b", "c", "p"))
    gap = pair["accuracy_difference"]
    cuts = [f"{threshold:.3g}" for threshold in comparison["thresholds"].values()]
    called = (
        f"the threshold {cuts[0]}" if cuts[0] == cuts[1] else f"thresholds {' and '.join(cuts)}"
    )
    sentences.append(
        f"At {called} {a} alone is right on {b_only:,} images and {b} alone on {c_only:,}: "
        f"{'no' if gap['low'] <= 0 <= gap['high'] else 'a'} difference in accuracy is shown "
        f"({gap['value']:+.3f}, 95 % "
        f"interval {gap['low']:+.3f} to {gap['high']:+.3f}; McNemar, {_p(p)})."
    )
    if seeds is None:
        sentences.append(
            "These tests know one trained model of each kind and ignore the variance of training: "
            "another seed may change the outcome."
        )
    else:
        sentences.append(summarize_seeds(seeds))
    return " ".join(sentences)


def _number(number: float) -> str:
    return f"{number:.4f}" if abs(number) >= 5e-5 or number == 0 else f"{number:.1g}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
