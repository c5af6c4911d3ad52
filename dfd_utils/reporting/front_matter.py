"""The report's first page, from a run's files: question, answer, one table and one figure."""

from pathlib import Path

from dfd_utils.config import FIGURES_DIR
from dfd_utils.data.folder import DataFolder
from dfd_utils.models.registry import BASELINE, COMPARED
from dfd_utils.models.trained import TrainedModel, find_models, models_by_title
from dfd_utils.reporting.data_text import data_note, name_data
from dfd_utils.reporting.formatting import format_entry, format_interval, format_p
from dfd_utils.stats.paired_tests import delong

TEMPLATE = Path(__file__).resolve().parent / "assets" / "front_matter.md"
FIGURE = "04_roc_precision_recall.svg"


def on_test(run_folder: Path, data: DataFolder) -> dict[str, TrainedModel]:
    """Return a run's models with predictions on Test by title, the networks first.

    Empty unless both networks are among them.
    """
    if not any(run_folder.glob("*/model.json")):
        return {}
    in_order = sorted(find_models(run_folder), key=lambda model: _place(model.name))
    found = models_by_title(in_order)
    models = {t: m for t, m in found.items() if m.find_table(data, "Test") is not None}
    compared = sum(model.name in COMPARED for model in models.values())
    return models if compared == len(COMPARED) else {}


def front_matter(models: dict[str, TrainedModel], data: DataFolder) -> tuple[str, Path] | None:
    """Return the first page as Markdown, and the figure whose name stands in it.

    The models are those of `on_test`. None if there are none, or if the figure is missing.
    """
    if not models:
        return None
    networks = {t: m for t, m in models.items() if m.name in COMPARED}
    run_folder = next(iter(networks.values())).folder.parent
    figure = FIGURES_DIR / run_folder.name / FIGURE
    if not figure.is_file():
        return None
    entries = {title: model.metrics(data, "Test") for title, model in models.items()}
    (first, a), (second, b) = networks.items()
    best = max(networks, key=lambda title: entries[title]["auc"])
    about = name_data(data)
    text = TEMPLATE.read_text().format(
        first=first,
        second=second,
        answer=f"On `Test` of {about}, {best} ranks a fake above a real image in "
        f"{entries[best]['auc']:.1%} of all pairs (AUC {format_entry(entries[best], 'auc')}).",
        difference=_difference(first, a, second, b, data),
        note=data_note(data),
        table=results_table(models, entries),
        images=entries[first]["images"],
        figure=FIGURE,
        seeds=f"each model was trained once for {len(a.history)} epochs, and the AUC of another "
        "seed may differ by more than the two networks do",
        about=about,
        baseline=_baseline(models, best, data),
    )
    return text, figure


def _place(name: str) -> int:
    """Return where a model stands: the two networks, the baseline, the rest."""
    order = (*COMPARED, BASELINE)
    return order.index(name) if name in order else len(order)


def _difference(first: str, a: TrainedModel, second: str, b: TrainedModel, data: DataFolder) -> str:
    labels = a.predictions(data, "Test")["label"]
    test = delong(
        labels, a.predictions(data, "Test")["logit"], b.predictions(data, "Test")["logit"]
    )
    numbers = (
        f"AUC {format_interval(test['difference'], test['low'], test['high'])}, DeLong "
        f"{format_p(test['p'])}"
    )
    if test["low"] <= 0 <= test["high"]:
        found = f"No difference between {first} and {second} is detected"
    else:
        found = f"{first if test['difference'] > 0 else second} is the better of the two"
    return f"{found} ({first} minus {second}: {numbers})."


def results_table(models: dict[str, TrainedModel], entries: dict[str, dict]) -> str:
    """Return metrics on Test with their intervals and the time of training, as Markdown."""
    lines = ["| | AUC | accuracy | F1 | training |", "|:---|:---|:---|:---|---:|"]
    for title, model in models.items():
        cells = [format_entry(entries[title], name) for name in ("auc", "accuracy", "f1")]
        minutes = model.history["seconds"].sum() / 60
        lines.append(f"| {title} | {' | '.join(cells)} | {minutes:.1f} min |")
    return "\n".join(lines)


def _baseline(models: dict[str, TrainedModel], best: str, data: DataFolder) -> str:
    baseline = next((t for t, m in models.items() if m.name == BASELINE), None)
    if baseline is None:
        return "none was trained in this run."
    logits = [models[title].predictions(data, "Test") for title in (best, baseline)]
    test = delong(logits[0]["label"], *(table["logit"] for table in logits))
    interval = format_interval(test["difference"], test["low"], test["high"])
    return (
        f"{best} differs from a logistic regression on the block DCT, fitted in seconds, by an AUC "
        f"of {interval}."
    )
