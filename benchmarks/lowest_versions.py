"""Whether the lowest versions of the dependencies that pyproject.toml allows do the job.

    python benchmarks/lowest_versions.py [TEST…]

Requires uv. Makes a temporary environment of 8 GB, imports all modules of the package and runs the
tests; by default those of downloads, decoding, training, exact resume, the face check, heat maps,
ONNX, statistics and the report (five minutes on two cores). Exit code 0: all bounds hold.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    "tests/data/test_download.py",
    "tests/data/test_image_io.py",
    "tests/training/test_train.py::test_both_models_learn_an_easy_task",
    "tests/training/test_resume.py::test_sigterm_ends_the_step_and_the_same_call_continues",
    "tests/inference/test_predict.py::test_images_without_a_face_have_a_warning",
    "tests/models/test_gradcam.py",
    "tests/models/test_onnx_export.py",
    "tests/stats/test_paired_tests.py",
    "tests/reporting/test_figures.py",
    "tests/reporting/test_formatting.py",
    "tests/reporting/test_export.py",
]
IMPORT_ALL = """
import importlib, pkgutil, dfd_utils
for module in pkgutil.walk_packages(dfd_utils.__path__, "dfd_utils."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def try_lowest(tests: list[str]) -> int:
    """Return the exit code of the first step that failed, else 0.

    uv's `lowest-direct` takes the lowest versions of what pyproject.toml lists, and the newest of
    what that needs in turn.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [f"--extra={name}" for name in project["optional-dependencies"]]
    with tempfile.TemporaryDirectory(prefix="dfd-lowest-") as folder:
        python = f"{folder}/bin/python"
        install = ["uv", "pip", "install", "--quiet", "--python", python]
        lowest = ["--resolution=lowest-direct", "-r", "pyproject.toml", *extras]
        steps = [
            ["uv", "venv", "--quiet", "--python", project["requires-python"].strip(">="), folder],
            [*install, *lowest],
            [*install, "--no-deps", "--editable", "."],
            [python, "-c", IMPORT_ALL],
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests],
        ]
        for step in steps:
            code = subprocess.run(step, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(try_lowest(sys.argv[1:] or TESTS))
