import json
import re
import resource
import subprocess
import sys

import pytest

from benchmarks import speed
from dfd_utils import cli


@pytest.mark.filterwarnings("ignore")
def test_bench_measures_all_phases(easy_data, tmp_path, capfd):
    command = ["bench", "--data", str(easy_data), "--models", "efficientnet_b0", "--batches", "1"]
    command += ["--rounds", "1", "--image-size", "32", "--batch-size", "8", "--precision", "fp32"]
    assert cli.main([*command, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["model"], row["phase"]) for row in rows] == [
        ("efficientnet_b0", "train"), ("efficientnet_b0", "score"),
        ("no model", "load"), ("no model, augmented", "load"),
    ]  # fmt: skip
    for row in rows:
        assert list(row) == speed.COLUMNS
        assert min(row["ours"], row["reference"], row["limit"]) > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
        assert row["share_of_limit"] == pytest.approx(row["ours"] / row["limit"])
    printed = capfd.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    assert re.search(rf"efficientnet_b0 \| train \| {rows[0]['ours']:.1f} \|", printed)


def page_faults(first: str) -> int:
    """Return the page faults of filling 64 MB twenty times over, after the line `first`."""
    code = (
        f"import resource, numpy\n{first}\nnumpy.ones(2**23)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): numpy.ones(2**23)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept():
    pages = 2**26 // resource.getpagesize()
    kept = page_faults("from dfd_utils.runtime.workers import configure_malloc; configure_malloc()")
    assert kept < pages
    assert page_faults("") > 2 * kept + 1000  # as it is without: huge pages make them fewer
