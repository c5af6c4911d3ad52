"""Executes a notebook by papermill and passes on its errors and signals."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from dfd_utils.config import PROJECT_ROOT, RunInterrupted, TimeLimitReached, UserError

NOTEBOOKS = PROJECT_ROOT / "notebooks"
PASSED_ON = {kind.__name__: kind for kind in (UserError, RunInterrupted, TimeLimitReached)}


class NotebookError(Exception):
    """A notebook failed for a reason that is not the user's (exit code 1)."""


def execute(notebook: Path, out: Path, parameters: dict) -> None:
    """Execute a notebook into `out`, and write it as HTML beside that.

    Raises:
        UserError, RunInterrupted, TimeLimitReached: as a cell raised them; the notebook is named.
        NotebookError: any other error of a cell, or the kernel died.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from dfd_utils.reporting.export import check_executed, export_notebook_html

    # A kernelspec of the same name in the home folder may start another environment's Python.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    # Inherited when called from a notebook in JupyterLab; nobody sees progress bars of this kernel.
    os.environ.pop("JPY_SESSION_NAME", None)
    running = out.with_name(f"{out.stem}.running.ipynb")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out.parent}: cannot be written ({error.strerror}); set DFD_OUTPUT_DIR to a folder "
            "that you can write to"
        ) from error
    try:
        with _forward_sigterm():
            papermill.execute_notebook(
                _escape(notebook), _escape(running), parameters, kernel_name="python3",
                cwd=str(NOTEBOOKS), progress_bar={"disable": None, "leave": False},
                stdout_file=sys.stdout, extra_arguments=["--log-level=ERROR"],
            )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename in PASSED_ON:
            raise PASSED_ON[error.ename](f"{notebook.name}: {error.evalue}") from error
        raise NotebookError(
            f"{notebook.name}: cell {error.exec_count} failed with {error.ename}: {error.evalue} "
            f"(full traceback in {display_path(running)})"
        ) from error
    except RuntimeError as error:  # the kernel died, usually because memory ran out
        raise NotebookError(f"{notebook.name}: {error}; see {display_path(running)}") from error
    check_executed(running)
    os.replace(running, out)
    export_notebook_html(out, out.with_suffix(".html"))


def _escape(path: Path) -> str:
    """Return a path for papermill, which fills in parameters between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _forward_sigterm() -> Iterator[None]:
    """Forward SIGTERM to the kernel, where a training saves its state, and let it end."""
    received = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for child in psutil.Process().children():
            child.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    except RuntimeError as error:  # the kernel was in work that keeps no state
        if received:
            raise RunInterrupted("stopped by SIGTERM; the same command continues it") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def display_path(path: Path) -> str:
    """Return a path relative to the working directory if it is inside it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
