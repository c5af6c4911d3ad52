"""The whole job: data, the five notebooks by papermill, then the report."""

import hashlib
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
    FREE_SETTINGS,
    PROJECT_ROOT,
    STARTED,
    UserError,
    duration,
    write_whole,
)
from dfd_utils.notebook import NOTEBOOKS, execute, shown

TITLE = "Deep Fake Image Detector"
SUBTITLE = "ResNet50 and EfficientNet-B0 compared on face images"
AUTHOR = (
    "Group G08, AI & Application, Hanyang University: "
    "Jan Rudkowski, Konrad Wojda, Ruke Sam-Ogaga, Isabel Pfeiffer"
)
CHOSEN_HERE = ("run", "data", "profile", "model")  # parameters with options of their own


def run_all(
    data: str | None = None,
    profile: str = "sample",
    run: str | None = None,
    parameters: dict | None = None,
    only: list[str] | None = None,
    pdf: bool = True,
) -> None:
    """Prepare the data, execute the notebooks and write the report; skip what is done already.

    Args:
        data: a data set's folder, "kaggle" to download the published one, None for the sample.
        profile: a key of `config.PROFILES`.
        run: the name under which everything is kept; None: the data set's name.
        parameters: values for the notebooks' parameters; each goes where it is known.
        only: numbers of the notebooks to execute, as "04".
        pdf: write the PDF beside the HTML.

    Raises:
        UserError: bad options or data, or a notebook that failed.
    """
    start = time.monotonic()
    notebooks = _selected(only)
    parameters = dict(parameters or {})
    known = {path: _parameters_of(path) for path in sorted(NOTEBOOKS.glob("0*.ipynb"))}
    _check_parameters(parameters, {n for names in known.values() for n in names}, profile)
    run = run or {None: "sample", "kaggle": "openforensics"}.get(data) or Path(data).resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise UserError(f"run name '{run}': use letters, digits, dots, dashes and underscores")
    folder = _prepare_data(data)
    _refuse_other_data(BUILD_DIR / "runs" / run, folder)
    parameters |= {"run": run, "data": os.path.relpath(folder, PROJECT_ROOT), "profile": profile}

    os.environ[STARTED] = str(time.time())  # max_hours are those of the whole run
    if parameters.get("max_hours") is not None:
        _plan(folder, BUILD_DIR / "runs" / run, parameters)
    executed, key = BUILD_DIR / "notebooks" / run, _sources_key(folder)
    for number, (path, names) in enumerate(known.items(), start=1):
        chosen = {name: value for name, value in parameters.items() if name in names}
        telling = {name: value for name, value in chosen.items() if name not in FREE_SETTINGS}
        key = _hash(key, path.read_bytes(), json.dumps(telling, sort_keys=True))
        if path in notebooks:
            title = f"[{number}/{len(known)}] {path.stem}"
            out = executed / path.name
            _once(title, key, [out], partial(execute, path, out, chosen))
    _report(run, [executed / path.name for path in known], pdf)
    print(
        f"Done in {duration(time.monotonic() - start)}. Open {shown(BUILD_DIR / 'report.html')}",
        end="",
    )
    print(f" or {shown(BUILD_DIR / 'report.pdf')}" if pdf else "", end="")
    print(f"; the figures are in {shown(config.FIGURES_DIR / run)}.")


def _selected(only: list[str] | None) -> list[Path]:
    by_number = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("0*.ipynb"))}
    if not by_number:
        raise UserError(f"{NOTEBOOKS}: no notebooks; run from a checkout of the project")
    for number in only or []:
        if number not in by_number:
            raise UserError(f"unknown notebook '{number}': choose from {', '.join(by_number)}")
    return [path for number, path in by_number.items() if not only or number in only]


def _parameters_of(notebook: Path) -> list[str]:
    import papermill

    return list(papermill.inspect_notebook(str(notebook)))


def _check_parameters(parameters: dict, known: set[str], profile: str) -> None:
    for name in parameters:
        if name in CHOSEN_HERE or name not in known:
            free = sorted(known - set(CHOSEN_HERE))
            raise UserError(f"unknown parameter '{name}': choose from {', '.join(free)}")
    settings = {name for name in config.Profile.__dataclass_fields__ if name != "name"}
    config.get_profile(profile, **{k: v for k, v in parameters.items() if k in settings})


def _prepare_data(data: str | None) -> Path:
    from dfd_utils.dataset import check_layout

    if data is None:
        from dfd_utils.sample import make_sample

        with _step("embedded sample"):
            folder = make_sample(config.DATA_DIR / "sample")
    elif data == "kaggle":
        from dfd_utils.download import download

        with _step("download from Kaggle"):
            folder = download()
    else:
        # A path on the command line counts from where the user stands.
        folder = config.data_folder(Path(data).absolute())
    check_layout(folder)
    return folder


def _refuse_other_data(run: Path, data: Path) -> None:
    """Raise a UserError where a run's models were trained on a data set of another name."""
    for path in sorted(run.glob("*/config.json")):
        trained_on = config.read_json(path, ["data"], "delete that folder and train again")["data"]
        if trained_on != data.name:
            raise UserError(
                f"{run}: trained on '{trained_on}', asked for is '{data.name}'; choose another "
                f"--run (`dfd evaluate --data {data} {run}` judges its models on other data)"
            )


def _plan(data: Path, run: Path, parameters: dict) -> None:
    """Say what the hours hold, unless all models are trained already."""
    from dfd_utils.models import MODELS
    from dfd_utils.plan import plan

    if all((run / name / "model.json").is_file() for name in MODELS):
        return
    names = config.Profile.__dataclass_fields__
    chosen = {k: v for k, v in parameters.items() if k in names and k != "name"}
    with _step("plan"):
        plan(list(MODELS), data, config.get_profile(parameters["profile"], **chosen), run)


def _sources_key(data: Path) -> str:
    from dfd_utils.dataset import data_fingerprint

    sources = sorted(Path(__file__).parent.glob("*.py"))
    return _hash(data_fingerprint(data, exclusions=False), *(p.read_bytes() for p in sources))


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _once(title: str, key: str, outputs: list[Path], work: Callable[[], None]) -> None:
    """Do the work unless its outputs are there and were made from the same inputs."""
    done = outputs[0].with_suffix(".done")
    if all(path.is_file() for path in [done, *outputs]) and done.read_text() == key:
        print(f"{title}: done already")
        return
    with _step(title):
        work()
        write_whole(done, key)


def _report(run: str, notebooks: list[Path], pdf: bool) -> None:
    from dfd_utils.report import ASSETS, export_report

    present = [path for path in notebooks if path.is_file()]
    key = _hash(*(path.read_bytes() for path in [*present, *sorted(ASSETS.iterdir())]))
    place = BUILD_DIR / "runs" / run / "report"
    made = [place.with_suffix(suffix) for suffix in (".html", ".pdf")[: 1 + pdf]]
    export = partial(export_report, present, place, TITLE, AUTHOR, SUBTITLE, pdf=pdf)
    _once("report", key, made, export)
    for path in made:  # build/report.* is that of the last run
        write_whole(BUILD_DIR / path.name, path.read_bytes())


@contextmanager
def _step(title: str) -> Iterator[None]:
    start = time.monotonic()
    print(f"{title} …")
    yield
    print(f"{title}: done in {duration(time.monotonic() - start)}")
