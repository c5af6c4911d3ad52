"""Tables and sentences about the comparison, and the conclusion."""

import math

import pandas as pd
from scipy.stats import norm, ttest_ind

from dfd_utils.reporting.formatting import (
    append_list,
    code_span,
    escape_markdown,
    format_interval,
    format_p,
    metric_label,
)

POWER = 0.8  # of the test whose sample size is estimated
# Standard errors by which a true difference must exceed zero to be detected at 5 % with that power.
DETECTABLE = float(norm.ppf(0.975) + norm.ppf(POWER))
# Standard deviation of the AUC between seeds, assumed where nothing is known about it: 0.02 to 0.04
# were measured after 8 epochs on part of the sample (docs/benchmarks.md).
SEED_DEVIATION = 0.03
TESTS = {  # row of the table: key of the comparison, and of its p value's test
    "AUC (p: DeLong)": ("auc_difference", "auc_difference"),
    "AUC (bootstrap)": ("auc_difference_bootstrap", None),
    "accuracy (p: McNemar)": ("accuracy_difference", "mcnemar"),
    "F1 (bootstrap)": ("f1_difference", None),
}
COMPARED_COSTS = ("parameters (million)", "GFLOPs per image", "training (min)", "one image (ms)")


def pair_table(comparisons: list[dict]) -> pd.DataFrame:
    """Return the differences (rows) of pairs of models (columns) from `compare_models`.

    Each has its 95 % interval. The last row counts the images on which only the first / only the
    second model is right.
    """
    columns = {}
    for comparison in comparisons:
        pair, (first, second) = comparison["pair"], comparison["models"]
        column = columns[f"{first} − {second}"] = {}  # noqa: RUF001  (a minus sign)
        for label, (key, test) in TESTS.items():
            p = f", {format_p(pair[test]['p'])}" if test else ""
            column[label] = "{value:+z.3f} [{low:+z.3f}, {high:+z.3f}]".format(**pair[key]) + p
        column["only one is right"] = "{b:,} / {c:,}".format(**pair["mcnemar"])
    return pd.DataFrame(columns)


def agreement_table(agreement: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return the counts and shares of `paired_tests.agreement`, formatted and labelled."""
    table = {
        title: [
            f"{count:,} ({share:.1%})"
            for count, share in zip(
                agreement[f"{prefix}images"], agreement[f"{prefix}share"], strict=True
            )
        ]
        for title, prefix in (("all", ""), ("Real", "real_"), ("Fake", "fake_"))
    }
    return pd.DataFrame(
        table, index=["both right", f"only {first}", f"only {second}", "both wrong"]
    )


def seed_table(seeds: pd.DataFrame) -> pd.DataFrame:
    """Return mean ± standard deviation over the seeds of `seed_metrics`, a row per model."""
    rows = {}
    for title, part in seeds.groupby("model", sort=False):
        rows[title] = {"training seeds": ", ".join(map(str, part["seed"]))}
        for name in ("auc", "accuracy", "f1"):
            spread = f" ± {part[name].std():.3f}" if len(part) > 1 else " (one seed)"
            rows[title][metric_label(name)] = f"{part[name].mean():.3f}{spread}"
    return pd.DataFrame(rows).T


def summarize_seeds(seeds: pd.DataFrame, missing: list[str] | None = None) -> str:
    """Return whether two architectures differ by more than the seeds of each do.

    Their mean AUCs are compared by Welch's t interval (1947), if each was trained with two seeds
    or more; otherwise, the number of seeds that this would take is estimated.

    Args:
        seeds: the result of `across_runs.seed_metrics` for two models.
        missing: the lines that it logged, for a list below.
    """
    return append_list(_seed_sentence(seeds), missing or [])


def _seed_sentence(seeds: pd.DataFrame) -> str:
    (a, first), (b, second) = seeds.groupby("model", sort=False)["auc"]
    difference = first.mean() - second.mean()
    if min(len(first), len(second)) < 2:
        needed = _seeds_needed(difference, SEED_DEVIATION)
        return (
            "The tests of single runs ignore the variance of training, and with a single seed it "
            "cannot be estimated. Assuming that the AUC varies between seeds with a standard "
            f"deviation of {SEED_DEVIATION}, {needed}."
        )
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    text = (
        f"Over {len(first)} and {len(second)} seeds, the mean AUC differs by {difference:+.4f} "
        f"(95 % interval {interval.low:+.4f} to {interval.high:+.4f}, Welch): "
    )
    if interval.low > 0 or interval.high < 0:
        better, worse = (a, b) if difference > 0 else (b, a)
        return text + (
            f"{code_span(better)} is the better architecture than {code_span(worse)} on these data."
        )
    needed = _seeds_needed(difference, math.sqrt((first.var() + second.var()) / 2))
    return text + (
        f"no difference between {code_span(a)} and {code_span(b)} is detected beyond the variance "
        f"of training. With this variance, {needed}."
    )


def _seeds_needed(difference: float, deviation: float) -> str:
    if not difference:
        return "no number of seeds would detect a difference, because the means are equal"
    needed = max(3, math.ceil(2 * (DETECTABLE * deviation / difference) ** 2))
    count = f"about {needed:,}" if needed < 1000 else "over 1,000"
    return (
        f"{count} seeds of each model would be needed to detect a true difference of the observed "
        "size with 80 % power"
    )


def cost_table(costs: dict[str, dict]) -> pd.DataFrame:
    """Return costs (rows) of models (columns, by title)."""
    return pd.DataFrame({
        title: {k: v if isinstance(v, str) else _short(v) for k, v in cost.items()}
        for title, cost in costs.items()
    })  # fmt: skip


def summarize_costs(costs: dict[str, dict]) -> str:
    """Return by which factor two models differ in the main costs, as a Markdown list."""
    lines = []
    for name in COMPARED_COSTS:
        (low, cheaper), (high, other) = sorted((cost[name], title) for title, cost in costs.items())
        lines.append(
            f"- {name[0].upper() + name[1:]}: {escape_markdown(cheaper)} {_short(low)}, "
            f"{escape_markdown(other)} {_short(high)}, a factor of {high / low:.1f}."
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"


def conclusion(comparison: dict, seeds: pd.DataFrame | None = None) -> str:
    """Return what a comparison has found, in a few sentences of Markdown.

    A winner is named only where the interval of the AUC difference (DeLong) excludes zero.

    Args:
        comparison: the result of `paired_tests.compare_models`.
        seeds: the result of `across_runs.seed_metrics`; None: other seeds were not looked for.
    """
    sentences = [_auc_sentences(comparison), _accuracy_sentence(comparison)]
    if seeds is None:
        sentences.append(
            "These tests compare one trained model of each kind and ignore the variance of "
            "training: another seed may change the outcome."
        )
    else:
        sentences.append(_seed_sentence(seeds))
    return " ".join(sentences)


def baseline_verdict(comparison: dict) -> str:
    """Return whether a network beats the baseline, in a sentence of Markdown.

    `comparison` is the result of `compare_models` for the network and the baseline, in this order.
    It does only where the interval of the AUC difference (DeLong) is above zero.
    """
    network, baseline = map(code_span, comparison["models"])
    value, low, high = (comparison["pair"]["auc_difference"][k] for k in ("value", "low", "high"))
    if low > 0:
        verdict = f"{network} beats the {baseline}"
    elif high < 0:
        verdict = f"{network} is worse than the {baseline}, which has no hidden layer"
    else:
        verdict = f"{network} is not shown to beat the {baseline}"
    return f"{verdict}: the AUC differs by {format_interval(value, low, high)} (DeLong)."


def _auc_sentences(comparison: dict) -> str:
    images, difference = comparison["images"], comparison["pair"]["auc_difference"]
    (a, auc_a), (b, auc_b) = (
        (code_span(name), model["auc"]["value"]) for name, model in comparison["models"].items()
    )
    value, low, high, p = (difference[key] for key in ("value", "low", "high", "p"))
    if high < 0:  # b is better: report it as the first
        a, b, auc_a, auc_b, value, low, high = b, a, auc_b, auc_a, -value, -high, -low
    numbers = (
        f"AUC {_number(auc_a)} versus {_number(auc_b)} on {images:,} images, difference "
        f"{_number(value)}, 95 % interval {_number(low)} to {_number(high)}, DeLong {format_p(p)}"
    )
    if low > 0:
        return f"{a} ranks the images better than {b} ({numbers})."
    text = f"No difference in AUC between {a} and {b} is detected ({numbers})."
    if not value:
        return text
    # The standard error shrinks with the square root of the number of images.
    error = (high - low) / 2 / norm.ppf(0.975)
    needed = min(images * (DETECTABLE * error / value) ** 2, 1e7)
    count = f"{'about' if needed < 1e7 else 'over'} {float(f'{needed:.2g}'):,.0f}"
    return (
        f"{text} The interval narrows with the square root of the number of images: {count} test "
        "images would be needed to detect a true difference of the observed size with 80 % power."
    )


def _accuracy_sentence(comparison: dict) -> str:
    a, b = map(code_span, comparison["models"])
    test, difference = (comparison["pair"][key] for key in ("mcnemar", "accuracy_difference"))
    cuts = [f"{threshold:.3g}" for threshold in comparison["thresholds"].values()]
    at = f"the threshold {cuts[0]}" if cuts[0] == cuts[1] else f"thresholds {' and '.join(cuts)}"
    detected = "no" if difference["low"] <= 0 <= difference["high"] else "a"
    return (
        f"At {at}, only {a} is right on {test['b']:,} images and only {b} on {test['c']:,}: "
        f"{detected} difference in accuracy is detected "
        f"({difference['value']:+z.3f}, 95 % interval {difference['low']:+z.3f} to "
        f"{difference['high']:+z.3f}; McNemar, {format_p(test['p'])})."
    )


def _number(number: float) -> str:
    return f"{number:.4f}" if abs(number) >= 5e-5 or number == 0 else f"{number:.1g}"
