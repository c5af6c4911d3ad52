"""The whole run: the data, the five notebooks by papermill, then the report."""

import ast
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dfd_utils import config
from dfd_utils.config import (
    BUILD_DIR,
    PROJECT_ROOT,
    RESULT_NEUTRAL_SETTINGS,
    START_TIME_ENV,
    UserError,
)
from dfd_utils.data.folder import DataFolder
from dfd_utils.reporting.notebook_runner import NOTEBOOKS, display_path, execute
from dfd_utils.runtime.files import content_hash, format_duration, read_json, write_atomic

TITLE = "Deep Fake Image Detector"
SUBTITLE = "ResNet50 and EfficientNet-B0 compared on face images"
AUTHOR = (
    "Group G08, AI & Application, Hanyang University: "
    "Jan Rudkowski, Konrad Wojda, Ruke Sam-Ogaga, Isabel Pfeiffer"
)
ASSETS = Path(__file__).resolve().parent / "assets"  # of the report
OWN_OPTIONS = ("run", "data", "profile", "model")  # parameters that have options of their own
# The files in a model's folder that notebooks read.
TRAINED = ("config.json", "excluded.csv", "history.csv", "model.json", "model.safetensors")
EVALUATED = (*TRAINED, "metrics.json", "predictions_*.csv", "on_*/metrics.json")
_seconds: dict[str, float] = {}  # that each step of this run took


def run_all(
    data: str | None = None,
    profile: str = "sample",
    run: str | None = None,
    parameters: dict | None = None,
    only: list[str] | None = None,
    pdf: bool = True,
    with_code: bool = False,
) -> None:
    """Prepare the data, execute the notebooks and write the report; skip what is up to date.

    Args:
        data: a data set's folder, "kaggle" to download the published one, None for the sample.
        profile: a key of `config.PROFILES`.
        run: the name of the run, and of its folders; None: made from the data set's name.
        parameters: values for the notebooks' parameters; each goes to the notebooks that have it.
        only: numbers of the notebooks to execute, as "04".
        pdf: write the PDF beside the HTML.
        with_code: show the notebooks' code in the PDF, too.

    Raises:
        UserError: bad options or data, or a notebook that failed.
    """
    start = time.monotonic()
    _seconds.clear()
    known = {path: _parameters_of(path) for path in _all_notebooks()}
    notebooks = _select(list(known), only)
    parameters = dict(parameters or {})
    _check_parameters(parameters, {name for names in known.values() for name in names}, profile)
    run = _run_name(run, data)
    run_folder, executed = BUILD_DIR / "runs" / run, BUILD_DIR / "notebooks" / run
    data = _prepare_data(data)
    _refuse_other_data(run_folder, data)
    _make_absolute(parameters)
    parameters |= {"run": run, "data": os.path.relpath(data.path, PROJECT_ROOT), "profile": profile}

    os.environ[START_TIME_ENV] = str(time.time())  # max_hours is the limit of the whole run
    if parameters.get("max_hours") is not None:
        _plan(data, run_folder, parameters)
    inputs = [_sources_key(), *(data.split_fingerprint(split) for split in config.SPLITS)]
    for number, (path, defaults) in enumerate(known.items(), start=1):
        if path not in notebooks:
            continue
        out = executed / path.name
        chosen = {name: value for name, value in parameters.items() if name in defaults}
        _run_if_stale(
            f"[{number}/{len(known)}] {path.stem}",
            partial(_key, path, defaults | chosen, run_folder, inputs),
            [out, out.with_suffix(".html")],
            partial(execute, path, out, chosen),
        )
    reports = _report(run_folder, [executed / path.name for path in known], data, pdf, with_code)
    total = time.monotonic() - start
    if table := _time_table(total):
        print(table)
    print(
        f"Done in {format_duration(total)}. "
        f"Open {' or '.join(map(display_path, reports))}; "
        f"the figures are in {display_path(config.FIGURES_DIR / run)}."
    )


def _all_notebooks() -> list[Path]:
    notebooks = sorted(NOTEBOOKS.glob("0*.ipynb"))
    if not notebooks:
        raise UserError(f"{NOTEBOOKS}: no notebooks; run from a checkout of the project")
    return notebooks


def _select(notebooks: list[Path], only: list[str] | None) -> list[Path]:
    by_number = {path.name[:2]: path for path in notebooks}
    for number in only or []:
        if number not in by_number:
            raise UserError(f"unknown notebook '{number}': choose from {', '.join(by_number)}")
    return [by_number[number] for number in only or by_number]


def _run_name(run: str | None, data: str | None) -> str:
    """Return the run's name as requested, or else a valid one made from the data set's name."""
    if run is None:
        name = {None: "sample", "kaggle": "openforensics"}.get(data) or Path(data).resolve().name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "data"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise UserError(f"run name '{run}': use letters, digits, dots, dashes and underscores")
    return run


def _parameters_of(notebook: Path) -> dict[str, object]:
    """Return the notebook's parameters with their defaults."""
    # papermill.inspect_notebook does the same, but takes a second to import.
    cells = json.loads(notebook.read_text())["cells"]
    cell = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    assignments = ast.parse("".join(cell["source"])).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}


def _check_parameters(parameters: dict, known: set[str], profile: str) -> None:
    for name in parameters:
        if name in OWN_OPTIONS or name not in known:
            free = sorted(known - set(OWN_OPTIONS))
            raise UserError(f"unknown parameter '{name}': choose from {', '.join(free)}")
    _profile(profile, parameters)


def _profile(name: str, parameters: dict) -> config.Profile:
    settings = config.Profile.__dataclass_fields__.keys() - {"name"}
    return config.get_profile(name, **{k: v for k, v in parameters.items() if k in settings})


def _make_absolute(parameters: dict) -> None:
    """Make paths absolute: a notebook's kernel has another working directory."""
    os.environ["DFD_OUTPUT_DIR"] = str(config.OUTPUT_ROOT)
    os.environ["DFD_DATA_DIR"] = str(config.DATA_DIR)
    if parameters.get("weights") not in (None, "none", "imagenet"):
        parameters["weights"] = os.path.abspath(parameters["weights"])


def _prepare_data(data: str | None) -> DataFolder:
    if data is None:
        from dfd_utils.data.sample.generate import make_sample

        with _step("embedded sample"):
            path = make_sample(config.DATA_DIR / "sample")
    elif data == "kaggle":
        from dfd_utils.data.download import download

        with _step("download from Kaggle"):
            path = download()
    else:
        path = Path(data).absolute()  # on the command line: from the working directory
    data_folder = DataFolder(path)
    data_folder.check_layout()
    return data_folder


def _refuse_other_data(run_folder: Path, data: DataFolder) -> None:
    """Raise a UserError if a model of the run was trained on other images."""
    for path in sorted(run_folder.glob("*/config.json")):
        recorded = read_json(path, ("data", "data_fingerprint"), f"delete {path.parent}")
        if recorded["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{path.parent}: was trained on other images ('{recorded['data']}') than "
                f"{data.path} now contains; choose another --run, or delete {run_folder}"
            )


def _plan(data: DataFolder, run_folder: Path, parameters: dict) -> None:
    from dfd_utils.models.registry import COMPARED
    from dfd_utils.training.plan import plan

    with _step("plan"):
        plan(list(COMPARED), data, _profile(parameters["profile"], parameters), run_folder)


def _sources_key() -> str:
    package = Path(config.__file__).parent
    return content_hash(*(path.read_bytes() for path in sorted(package.rglob("*.py"))))


def _key(notebook: Path, parameters: dict, run_folder: Path, inputs: list[str]) -> str:
    """Return a hash of all that a notebook reads: its cells, parameters and inputs, by content."""
    relevant = {k: v for k, v in parameters.items() if k not in RESULT_NEUTRAL_SETTINGS}
    state = [notebook.read_text(), json.dumps(relevant, sort_keys=True), *inputs]
    weights = parameters.get("weights")
    if weights not in (None, "none", "imagenet"):
        state.append(content_hash(Path(weights).read_bytes()))
    if "model" in parameters:  # a notebook that trains
        state += _hash_files(run_folder / parameters["model"], TRAINED)
    elif notebook.name.startswith("04"):  # evaluates this run, also on other data sets
        for model in sorted(run_folder.glob("*/model.json")):
            state += _hash_files(model.parent, EVALUATED)
        for path in sorted(config.DATA_DIR.glob("*/[Tt]est/*")):
            state.append(f"{path} {path.stat().st_mtime_ns}")
    elif notebook.name.startswith("05"):  # compares the runs with other seeds
        for model in sorted(run_folder.parent.glob("*/*/model.json")):
            state += _hash_files(model.parent, EVALUATED)
    return content_hash(*state)


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Return the name and a hash of the content of each file."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return [f"{path} {content_hash(path.read_bytes())}" for path in paths]


def _run_if_stale(
    title: str, key: Callable[[], str], outputs: list[Path], work: Callable[[], None]
) -> None:
    """Do the work unless each output was made from the same inputs, which `key` identifies."""
    records = [path.with_name(f".{path.name}.key") for path in outputs]
    current = key()
    if all(
        path.is_file() and record.is_file() and record.read_text() == current
        for path, record in zip(outputs, records, strict=True)
    ):
        print(f"{title}: done already")
        return
    with _step(title):
        work()
        final = key()  # the work itself adds to what it reads
        for record in records:
            write_atomic(record, final)


def _report(
    run_folder: Path, notebooks: list[Path], data: DataFolder, pdf: bool, with_code: bool = False
) -> list[Path]:
    """Write the run's report, copy it to build/report.*, and return these copies."""
    present = [path for path in notebooks if path.is_file()]
    code = "with code" if with_code else "without code"
    inputs = [path.read_bytes() for path in [*present, *sorted(ASSETS.iterdir())]]
    for model in sorted(run_folder.glob("*/model.json")):
        shown = ("config.json", "history.csv", model.name, "metrics.json", "on_*/metrics.json")
        inputs += _hash_files(model.parent, shown)
    report = run_folder / "report"

    def export() -> None:
        from dfd_utils.reporting.back_matter import back_matter
        from dfd_utils.reporting.export import export_report  # nbconvert takes a second to import
        from dfd_utils.reporting.front_matter import front_matter, on_test

        models = on_test(run_folder, data)
        front, back = front_matter(models, data), back_matter(models, data)
        export_report(present, report, TITLE, AUTHOR, SUBTITLE, pdf, front, back, with_code)

    outputs = [report.with_suffix(suffix) for suffix in (".html", ".pdf")[: 1 + pdf]]
    _run_if_stale(
        "report",
        lambda: content_hash(code, *inputs),
        outputs,
        export,
    )
    if not pdf:  # no PDF of another run or of older notebooks remains beside the new HTML
        for folder in (run_folder, BUILD_DIR):
            (folder / "report.pdf").unlink(missing_ok=True)
    return [write_atomic(BUILD_DIR / path.name, path.read_bytes()) for path in outputs]


@contextmanager
def _step(title: str) -> Iterator[None]:
    start = time.monotonic()
    print(f"{title} …")
    yield
    _seconds[title] = time.monotonic() - start
    print(f"{title}: done in {format_duration(_seconds[title])}")


def _time_table(total: float) -> str:
    """Return where the time went, a line per step; empty if there was nothing to do."""
    steps = {step: spent for step, spent in _seconds.items() if spent >= 0.5}
    if not steps:
        return ""
    steps["checks, and what was done already"] = total - sum(steps.values())
    width = max(map(len, steps))
    lines = [f"  {name:{width}}  {format_duration(spent):>12}" for name, spent in steps.items()]
    return "\n".join(["Where the time went:", *lines])
