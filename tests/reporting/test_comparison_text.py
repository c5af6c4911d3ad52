import pandas as pd
import pytest

from dfd_utils.reporting import comparison_text


def comparison(
    value: float,
    low: float,
    high: float,
    accuracy_low: float = -0.005,
    names: tuple[str, str] = ("model_a", "model|b"),
) -> dict:
    """The result of `compare_models` for an AUC difference."""
    a, b = names
    return {
        "images": 1000,
        "thresholds": {a: 0.5, b: 0.5},
        "models": {a: {"auc": {"value": 0.9 + value}}, b: {"auc": {"value": 0.9}}},
        "pair": {
            "auc_difference": {"value": value, "low": low, "high": high, "p": 0.0123},
            "auc_difference_bootstrap": {"value": value, "low": low, "high": high},
            "accuracy_difference": {"value": 0.01, "low": accuracy_low, "high": 0.025},
            "f1_difference": {"value": 0.02, "low": -0.01, "high": 0.05},
            "mcnemar": {"b": 30, "c": 20, "p": 0.5 if accuracy_low < 0 else 0.0001},
        },
    }


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (
            (0.02, 0.01, 0.03),
            "`model_a` ranks the images better than `model|b` (AUC 0.9200 versus 0.9000 on 1,000 "
            "images, difference 0.0200, 95 % interval 0.0100 to 0.0300, DeLong p = 0.012).",
        ),
        (
            (-0.02, -0.03, -0.01),
            "`model|b` ranks the images better than `model_a` (AUC 0.9000 versus 0.8800 on 1,000 "
            "images, difference 0.0200, 95 % interval 0.0100 to 0.0300, DeLong p = 0.012).",
        ),
        ((0.01, -0.01, 0.03), "about 8,200 test images would"),  # 1000 (2 * 2.8016 / 1.96)^2
        ((-0.01, -0.03, 0.01), "about 8,200 test images would"),
        ((0.01, 0.0, 0.02), "No difference in AUC between `model_a` and `model|b` is detected"),
        ((1e-6, -0.01, 0.01), "over 10,000,000 test images would"),
    ],
)
def test_conclusion_names_a_winner_only_outside_the_interval(numbers, words):
    text = comparison_text.conclusion(comparison(*numbers))
    assert words in text
    assert ("better" in text) == (numbers[1] > 0 or numbers[2] < 0)
    assert ("square root" in text) == ("better" not in text)
    assert "no difference in accuracy is detected (+0.010, 95 % interval -0.005 to +0.025" in text
    assert "McNemar, p = 0.5)" in text
    assert "ignore the variance of training" in text
    assert text.count("\n") == 0 and 2 <= text.count(". ") + 1 <= 5


def test_conclusion_states_a_difference_in_accuracy():
    text = comparison_text.conclusion(comparison(0.01, -0.01, 0.03, accuracy_low=0.001))
    words = (
        "At the threshold 0.5, only `model_a` is right on 30 images and only `model|b` on 20: a "
    )
    assert words + "difference in accuracy is detected" in text
    assert "p < 0.001" in text


def test_pair_table_has_a_column_per_pair():
    table = comparison_text.pair_table([comparison(0.02, 0.01, 0.03, names=("A", "B"))])
    assert table["A − B"].to_dict() == {  # noqa: RUF001
        "AUC (p: DeLong)": "+0.020 [+0.010, +0.030], p = 0.012",
        "AUC (bootstrap)": "+0.020 [+0.010, +0.030]",
        "accuracy (p: McNemar)": "+0.010 [-0.005, +0.025], p = 0.5",
        "F1 (bootstrap)": "+0.020 [-0.010, +0.050]",
        "only one is right": "30 / 20",
    }


def seeds(first: list[float], second: list[float]) -> pd.DataFrame:
    rows = [("A", n, x) for n, x in enumerate(first)] + [("B", n, x) for n, x in enumerate(second)]
    table = pd.DataFrame(rows, columns=["model", "seed", "auc"])
    return table.assign(accuracy=table["auc"], f1=table["auc"])


def test_one_seed_shows_nothing_about_the_architecture():
    text = comparison_text.summarize_seeds(seeds([0.95], [0.93]))
    assert "ignore the variance of training" in text
    assert "about 36 seeds of each" in text  # 2 * (2.8016 * 0.03 / 0.02)^2 = 35.3
    assert "better" not in text
    assert comparison_text.seed_table(seeds([0.95], [0.93])).loc["A", "AUC"] == "0.950 (one seed)"
    assert "no number of seeds" in comparison_text.summarize_seeds(seeds([0.9], [0.9]))


def test_several_seeds_are_compared_by_welch():
    clear = comparison_text.summarize_seeds(seeds([0.90, 0.91, 0.92], [0.95, 0.96, 0.97]))
    assert "`B` is the better architecture than `A`" in clear
    assert "-0.0500 (95 % interval -0.0727 to -0.0273" in clear  # t(4) = 2.7764, s = 0.01
    unclear = comparison_text.summarize_seeds(seeds([0.90, 0.92, 0.94], [0.91, 0.93, 0.95]))
    assert "no difference between `A` and `B` is detected" in unclear
    assert "about 63 seeds of each" in unclear  # 2 * (2.8016 * 0.02 / 0.01)^2 = 62.8
    table = comparison_text.seed_table(seeds([0.90, 0.92], [0.91, 0.93]))
    assert table.loc["A", "AUC"] == "0.910 ± 0.014"
    assert table.loc["A", "training seeds"] == "0, 1"


def test_missing_seeds_are_listed():
    text = comparison_text.summarize_seeds(seeds([0.9], [0.8]), ["missing: seed1/resnet50"])
    assert text.splitlines()[-1] == "- missing&#58; seed1&#47;resnet50"


def test_costs_are_compared_by_their_factor():
    names = comparison_text.COMPARED_COSTS
    costs = {"A": dict.fromkeys(names, 4.0), "B": dict.fromkeys(names, 10.0)}
    lines = comparison_text.summarize_costs(costs).splitlines()
    assert lines[0] == "- Parameters (million): A 4, B 10, a factor of 2.5."
    assert len(lines) == len(names)
    table = comparison_text.cost_table({"A": {"precision": "fp32", "images/s": 1234.5}})
    assert table["A"].tolist() == ["fp32", "1,234"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.2, "beats"), (-0.2, -0.01, "is worse than"), (-0.1, 0.1, "is not shown to beat")],
)
def test_a_network_beats_the_baseline_only_by_its_interval(low, high, words):
    difference = {"value": (low + high) / 2, "low": low, "high": high}
    comparison = {"models": {"N": {}, "B": {}}, "pair": {"auc_difference": difference}}
    text = comparison_text.baseline_verdict(comparison)
    assert f"`N` {words} the `B`" in text
    assert f"[{low:.3f}, {high:.3f}]" in text
