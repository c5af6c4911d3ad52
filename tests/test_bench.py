import json
import re

import pytest

from dfd_utils import cli

COLUMNS = ["model", "phase", "ours", "reference", "limit", "unit", "ratio", "share_of_limit"]


@pytest.mark.filterwarnings("ignore")
def test_bench_measures_all_phases(easy_data, tmp_path, capfd):
    command = ["bench", "--data", str(easy_data.path), "--models", "efficientnet_b0"]
    command += ["--batches", "1", "--rounds", "1", "--image-size", "32", "--batch-size", "8"]
    command += ["--precision", "fp32", "--json", str(tmp_path / "rows.json")]
    assert cli.main(command) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["model"], row["phase"]) for row in rows] == [
        ("efficientnet_b0", "train"), ("efficientnet_b0", "score"),
        ("no model", "load"), ("no model, augmented", "load"),
    ]  # fmt: skip
    for row in rows:
        assert list(row) == COLUMNS
        assert min(row["ours"], row["reference"], row["limit"]) > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
        assert row["share_of_limit"] == pytest.approx(row["ours"] / row["limit"])
    printed = capfd.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    assert re.search(rf"efficientnet_b0 \| train \| {rows[0]['ours']:.1f} \|", printed)
