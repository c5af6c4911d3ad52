"""The whole job: data, the five notebooks by papermill, then the report."""

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
from dfd_utils.runtime.files import content_hash, format_duration, write_atomic

TITLE = "Deep Fake Image Detector"
SUBTITLE = "ResNet50 and EfficientNet-B0 compared on face images"
AUTHOR = (
    "Group G08, AI & Application, Hanyang University: "
    "Jan Rudkowski, Konrad Wojda, Ruke Sam-Ogaga, Isabel Pfeiffer"
)
OWN_OPTIONS = ("run", "data", "profile", "model")  # parameters that have options of their own
# What each notebook reads beside the package, the data set and its settings.
TRAINED = ("config.json", "excluded.csv", "history.csv", "model.json", "model.safetensors")
EVALUATED = (*TRAINED, "metrics.json", "predictions_*.csv", "on_*/metrics.json")


def run_all(
    data: str | None = None,
    profile: str = "sample",
    run: str | None = None,
    parameters: dict | None = None,
    only: list[str] | None = None,
    pdf: bool = True,
) -> None:
    """Prepare the data, execute the notebooks and write the report; skip what is up to date.

    Args:
        data: a data set's folder, "kaggle" to download the published one, None for the sample.
        profile: a key of `config.PROFILES`.
        run: the name under which everything is kept; None: the data set's name.
        parameters: values for the notebooks' parameters; each goes to the notebooks that have it.
        only: numbers of the notebooks to execute, as "04".
        pdf: write the PDF beside the HTML.

    Raises:
        UserError: bad options or data, or a notebook that failed.
    """
    start = time.monotonic()
    notebooks = _selected(only)
    parameters = dict(parameters or {})
    known = {path: _parameters_of(path) for path in sorted(NOTEBOOKS.glob("0*.ipynb"))}
    _check_parameters(parameters, {name for names in known.values() for name in names}, profile)
    run = run or {None: "sample", "kaggle": "openforensics"}.get(data) or Path(data).resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise UserError(f"run name '{run}': use letters, digits, dots, dashes and underscores")
    run_folder = BUILD_DIR / "runs" / run
    data = _prepare_data(data)
    _refuse_other_data(run_folder, data)
    _make_absolute(parameters)
    parameters |= {"run": run, "data": os.path.relpath(data.path, PROJECT_ROOT), "profile": profile}

    os.environ[START_TIME_ENV] = str(time.time())  # max_hours is the limit of the whole run
    if parameters.get("max_hours") is not None:
        _plan(data, run_folder, parameters)
    executed, sources = BUILD_DIR / "notebooks" / run, _sources_key()
    images = [data.split_fingerprint(split) for split in config.SPLITS]
    for path in notebooks:
        out = executed / path.name
        chosen = {name: value for name, value in parameters.items() if name in known[path]}
        key = partial(_key, path, known[path] | chosen, run_folder, [sources, *images])
        title = f"[{list(known).index(path) + 1}/{len(known)}] {path.stem}"
        work = partial(execute, path, out, chosen)
        _run_if_stale(title, key, [out, out.with_suffix(".html")], work)
    _report(run_folder, [executed / path.name for path in known], pdf)
    print(
        f"Done in {format_duration(time.monotonic() - start)}. "
        f"Open {display_path(BUILD_DIR / 'report.html')}",
        end="",
    )
    print(f" or {display_path(BUILD_DIR / 'report.pdf')}" if pdf else "", end="")
    print(f"; the figures are in {display_path(config.FIGURES_DIR / run)}.")


def _selected(only: list[str] | None) -> list[Path]:
    by_number = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("0*.ipynb"))}
    if not by_number:
        raise UserError(f"{NOTEBOOKS}: no notebooks; run from a checkout of the project")
    for number in only or []:
        if number not in by_number:
            raise UserError(f"unknown notebook '{number}': choose from {', '.join(by_number)}")
    return [path for number, path in by_number.items() if not only or number in only]


def _parameters_of(notebook: Path) -> dict[str, object]:
    """Return the notebook's parameters with their defaults."""
    import papermill

    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(entry["default"]) for name, entry in found.items()}


def _check_parameters(parameters: dict, known: set[str], profile: str) -> None:
    for name in parameters:
        if name in OWN_OPTIONS or name not in known:
            free = sorted(known - set(OWN_OPTIONS))
            raise UserError(f"unknown parameter '{name}': choose from {', '.join(free)}")
    settings = {name for name in config.Profile.__dataclass_fields__ if name != "name"}
    config.get_profile(profile, **{k: v for k, v in parameters.items() if k in settings})


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
    from dfd_utils.models.trained import read_config

    for path in sorted(run_folder.glob("*/config.json")):
        before = read_config(path.parent)
        if before["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{path.parent}: was trained on other images ('{before['data']}') than "
                f"{data.path} now contains; choose another --run, or delete {run_folder}"
            )


def _plan(data: DataFolder, run_folder: Path, parameters: dict) -> None:
    from dfd_utils.models.registry import MODELS
    from dfd_utils.training.plan import plan

    names = config.Profile.__dataclass_fields__
    chosen = {k: v for k, v in parameters.items() if k in names and k != "name"}
    with _step("plan"):
        plan(list(MODELS), data, config.get_profile(parameters["profile"], **chosen), run_folder)


def _sources_key() -> str:
    package = Path(config.__file__).parent
    return content_hash(*(path.read_bytes() for path in sorted(package.rglob("*.py"))))


def _key(notebook: Path, parameters: dict, run_folder: Path, inputs: list[str]) -> str:
    """Return a hash of all that a notebook reads: its cells, parameters and inputs, by content."""
    relevant = {k: v for k, v in parameters.items() if k not in RESULT_NEUTRAL_SETTINGS}
    state = [notebook.read_text(), json.dumps(relevant, sort_keys=True), *inputs]
    weights = parameters.get("weights")
    if weights not in (None, "none", "imagenet"):
        state += _hash_files(Path(weights).parent, (Path(weights).name,))
    if "model" in parameters:  # a notebook that trains
        state += _hash_files(run_folder / parameters["model"], TRAINED)
    elif notebook.name[:2] in ("04", "05"):  # these look at other runs and data sets, too
        for model in sorted(run_folder.parent.glob("*/*/model.json")):
            state += _hash_files(model.parent, EVALUATED)
        for path in sorted(config.DATA_DIR.glob("*/[Tt]est/*")):
            state.append(f"{path} {path.stat().st_mtime_ns}")
    return content_hash(*state)


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
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
        made = key()  # the work itself adds to what it reads
        for record in records:
            write_atomic(record, made)


def _report(run_folder: Path, notebooks: list[Path], pdf: bool) -> None:
    from dfd_utils.reporting.export import ASSETS, export_report

    present = [path for path in notebooks if path.is_file()]
    inputs = [path.read_bytes() for path in [*present, *sorted(ASSETS.iterdir())]]
    report = run_folder / "report"
    outputs = [report.with_suffix(suffix) for suffix in (".html", ".pdf")[: 1 + pdf]]
    _run_if_stale(
        "report",
        lambda: content_hash(*inputs),
        outputs,
        lambda: export_report(present, report, TITLE, AUTHOR, SUBTITLE, pdf=pdf),
    )
    for path in outputs:  # build/report.* are those of the last run
        write_atomic(BUILD_DIR / path.name, path.read_bytes())
    if not pdf:  # no PDF of another run or of older notebooks beside the new HTML
        (BUILD_DIR / "report.pdf").unlink(missing_ok=True)


@contextmanager
def _step(title: str) -> Iterator[None]:
    start = time.monotonic()
    print(f"{title} …")
    yield
    print(f"{title}: done in {format_duration(time.monotonic() - start)}")
