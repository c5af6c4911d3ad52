import pytest

from dfd_utils.reporting import data_text


def audit_summary(**changes) -> dict:
    """A small summary of an audit, as `DataFolder.audit_summary` returns it."""
    shift = {"split": "Test", "class": "All", "statistic": "noise", "size": "small"}
    return {
        "images": 20, "unreadable": 0, "unreadable_files": [], "excluded": {}, "warnings": [],
        "leakage": {"Train in Test": 3}, "shortcuts": [{"auc": None, "warning": ""}],
        "duplicates": {"exact": {"pairs": 0}, "near": {"pairs": 0}},
        "shift": [shift | {"cliffs_delta": 0.2}, shift | {"class": "Real", "cliffs_delta": 1}],
    } | changes  # fmt: skip


def test_the_data_set_is_always_named(tiny_sample, easy_data):
    assert "no evidence about real deepfakes" in data_text.data_note(tiny_sample)
    assert "`easy`" in data_text.data_note(easy_data)


def test_shortcuts_are_denied_only_where_they_were_tested():
    def text(*shortcuts, warnings=()):
        rows = [{"auc": auc, "warning": warning} for auc, warning in shortcuts]
        return data_text.summarize_audit(audit_summary(shortcuts=rows, warnings=warnings))

    assert "too few images to test" in text((None, ""))
    assert "No attribute of the file was found" in text((0.5, ""), (None, ""))
    warned = text((0.9, "leaks"), warnings=["leaks"])
    assert "**Warning:** leaks." in warned and "No attribute" not in warned


def test_audit_summary_counts_and_names():
    counts = {"Train": {"Real": 2, "Fake": 1}, "Test": {"Real": 0, "Fake": 4}}
    text = data_text.summarize_audit(
        audit_summary(unreadable=5, unreadable_files=[*"abcd"], excluded=counts)
    )
    assert "20 images, 5 of them unreadable (the first: `a`, `b`, `c`)." in text
    assert "Train in Test 3" in text and "7 images are on the exclusion list" in text
    assert "in noise (Cliff's delta +0.20; size of the effect: small)" in text


@pytest.mark.parametrize("split", ["Train", "Test"])
def test_shortcut_table_is_of_train(split):
    rows = [
        {"split": split, "attributes": name, "images": 9, "auc": auc, "low": 0.4, "high": 0.6}
        for name, auc in (("file size", 0.5), ("dimensions", None))
    ]
    table = data_text.shortcut_table({"shortcuts": rows})
    if split == "Test":
        assert table.empty
    else:
        assert table.loc["file size"].tolist() == [9, "0.500 [0.400, 0.600]"]
        assert table.loc["dimensions"].tolist() == [9, "too few images"]


def test_shift_is_given_for_all_images_and_by_class():
    rows = [
        {"split": "Test", "class": name, "statistic": "grey_share", "cliffs_delta": delta,
         "size": "large"}
        for name, delta in (("All", 0.6), ("Real", 0.5), ("Fake", -1))
    ]  # fmt: skip
    table = data_text.shift_table({"shift": rows})
    assert table.loc["grey share"].to_dict() == {
        "Test": "+0.60 (large)",
        "Test, Real": "+0.50",
        "Test, Fake": "-1.00",
    }
