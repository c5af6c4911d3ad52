"""How numbers, names and other text are printed in tables and in Markdown sentences."""

import re

import pandas as pd

METRIC_LABELS = {
    "auc": "AUC",
    "f1": "F1",
    "f1score": "F1",
    "eer": "equal error rate (EER)",
    "aurc": "area under risk-coverage",
    "real_called_fake": "false-positive rate",
    "fake_called_real": "false-negative rate",
    "recall_at_1_percent_fpr": "recall at 1 % false positives",
    "recall_at_5_percent_fpr": "recall at 5 % false positives",
    "expected_calibration_error": "calibration error (ECE)",
    "brier": "Brier score",
    "jpeg_quality": "JPEG quality",
}
# All ASCII punctuation except %()+,-;? which means nothing in Markdown inside a line.
_MARKUP = re.compile(r"""[!"#$&'*./:<=>@\[\\\]^_`{|}~]""")


def format_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return "value [low, high]" with three decimals and without a negative zero."""
    if value is None or pd.isna(value):
        return "too few images"
    return f"{value:z.3f} [{low:z.3f}, {high:z.3f}]"


def format_entry(entry: dict, name: str) -> str:
    """Return a metric of an entry of metrics.json with its interval."""
    return format_interval(entry[name], *entry["intervals"][name])


def format_p(p: float) -> str:
    """Return a p value as "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def metric_label(name: str) -> str:
    """Return the printed name of a metric or an image statistic."""
    return METRIC_LABELS.get(name, name.replace("_", " "))


def code_span(text: str) -> str:
    """Return any text, such as a file's name, as a Markdown code span that shows it literally."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def escape_markdown(text: str) -> str:
    """Return any text as Markdown that shows it literally inside a line, without code font."""
    return _MARKUP.sub(lambda mark: f"&#{ord(mark[0])};", printable(text))


def append_list(text: str, lines: list[str]) -> str:
    """Return Markdown text with a list of unformatted lines below it, if there are any."""
    return "\n".join([text, "", *(f"- {escape_markdown(line)}" for line in lines)]).strip()


def printable(text: str) -> str:
    """Return text with its line breaks and other unprintable characters replaced."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
