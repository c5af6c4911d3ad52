"""The report's last pages, from a run's files: limits, the REFORMS checklist and a glossary."""

import re
from math import isnan
from pathlib import Path

import pandas as pd

from dfd_utils.config import SPLITS
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.answers import measured_on
from dfd_utils.models.registry import BASELINE
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting.data_text import data_note, name_data
from dfd_utils.reporting.formatting import code_span, escape_markdown
from dfd_utils.stats.metrics import positive_predictive_value

TEMPLATE = Path(__file__).resolve().parent / "assets" / "back_matter.md"
BASE_RATES = (0.5, 0.1, 0.01, 0.001)


def back_matter(models: dict[str, TrainedModel], data: DataFolder) -> list[str]:
    """Return the last chapters as Markdown, each beginning with its title.

    Args:
        models: by title, with metrics on Test, the networks first; see `front_matter.on_test`.
            Without models, there are no chapters.
        data: the data set that they were evaluated on, audited.
    """
    if not models:
        return []
    first = next(iter(models.values()))
    text = TEMPLATE.read_text().format(
        note=data_note(data),
        base_rates=_markdown(base_rate_table(models, data)),
        **_about_data(data),
        **_about_training(first),
        models=", ".join(map(escape_markdown, models)),
        test_images=f"{first.metrics(data, 'Test')['images']:,}",
        baseline=_baseline(models),
        elsewhere=_elsewhere(models, data),
    )
    return re.split(r"\n(?=# )", text)


def base_rate_table(models: dict[str, TrainedModel], data: DataFolder) -> pd.DataFrame:
    """Return the share of fakes among the images called Fake, by model (rows) and base rate.

    At the threshold chosen on Validation, with the rates on Test. In brackets the values at the
    unfavourable and favourable ends of both rates' 95 % intervals: at least as wide as a 95 %
    interval of the share.
    """
    rows = {}
    for title, model in models.items():
        chosen = model.metrics(data, "Test")["at_validation_threshold"]
        ends = chosen["intervals"]
        found, called = ([chosen[n], *ends[n]] for n in ("recall", "real_called_fake"))
        cells = {"threshold": f"{chosen['threshold']:.3f}"}
        for rate in BASE_RATES:
            value, low, high = (
                positive_predictive_value(r, f, rate)
                for r, f in zip(found, [called[0], called[2], called[1]], strict=True)
            )
            text = "none is called Fake" if isnan(value) else f"{value:.1%} [{low:.1%}, {high:.1%}]"
            cells[f"1 in {1 / rate:,.0f}"] = text
        rows[title] = cells
    return pd.DataFrame(rows).T


def _about_data(data: DataFolder) -> dict[str, str]:
    summary, sample = data.audit_summary, data.is_sample
    counts = {name: summary["counts"][name] for name in SPLITS}
    sizes = [f"{name} {n['Real']:,} + {n['Fake']:,}" for name, n in counts.items()]
    warned = any(row["warning"] for row in summary["shortcuts"])
    return {
        "about": name_data(data),
        "data": code_span(data.name),
        "fingerprint": code_span(summary["fingerprint"]),
        "why": "it lets everybody run all of this" if sample else "chosen by whoever ran this",
        "source": "drawn by this software" if sample else "given by whoever ran this",
        "frame": "random portraits; a fake shows another's inner face"
        if sample
        else "not known to this software",
        "representative": "of drawn portraits only" if sample else "not claimed beyond this set",
        "groups": "The drawn portraits stand for no group of people, so nothing is measured here."
        if sample
        else "The data name no groups, so nothing is measured here.",
        "sizes": f"Real + Fake: {', '.join(sizes)}",
        "unreadable": f"{summary['unreadable']:,}",
        "excluded": f"{sum(sum(n.values()) for n in summary['excluded'].values()):,}",
        "leaks": f"{sum(summary['leakage'].values()):,}",
        "shortcuts": "the audit warns of shortcuts" if warned else "no shortcut found",
    }


def _about_training(model: TrainedModel) -> dict[str, str]:
    config = model.config
    settings = config["settings"]
    versions = [f"{name} {config['versions'][name]}" for name in ("python", "torch")]
    return {
        "commit": code_span(config["git_commit"]),
        "device": escape_markdown(config["device"]),
        "versions": ", ".join(map(escape_markdown, versions)),
        "image_size": str(settings["image_size"]),
        "degraded": f"{settings['degradation_probability']:.0%}",
        "profile": settings["name"],
    }


def _baseline(models: dict[str, TrainedModel]) -> str:
    found = any(model.name == BASELINE for model in models.values())
    return "logistic regression on the block DCT" if found else "none was trained in this run"


def _elsewhere(models: dict[str, TrainedModel], data: DataFolder) -> str:
    """Return on how many other data sets the models have results."""
    others = {name for model in models.values() for name in measured_on(model)} - {data.name}
    if not others:
        return "none: no other data set was scored"
    return f"results on {', '.join(map(code_span, sorted(others)))}, each by itself"


def _markdown(table: pd.DataFrame) -> str:
    lines = [f"| | {' | '.join(table.columns)} |", "|:---" + "|---:" * len(table.columns) + "|"]
    lines += [
        f"| {escape_markdown(row.Index)} | {' | '.join(row[1:])} |" for row in table.itertuples()
    ]
    return "\n".join(lines)
