"""Progress of a training: a bar where someone watches, else a line every few minutes."""

from types import SimpleNamespace

import pytest
import torch

from dfd_utils.training import progress


def report(deadline=float("inf"), steps=6):
    """Report four steps of the second of two epochs; return the lines of the log."""
    lines = []
    reporter = progress.Progress("model", 2, steps, 8, deadline, lines.append)
    rows = [{"seconds": 3.0, "images_per_second": 24.0}]  # 2 s of training, 1 s of validation
    state = SimpleNamespace(epoch=2, step=0, images=0, loss_sum=torch.zeros(()), rows=rows)
    reporter.begin(state)
    for _ in range(4):
        state.step += 1
        state.images += 8
        state.loss_sum += 8 * 0.25
        reporter.step(state)
    reporter.end()
    return lines


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by 100 seconds per reading."""
    now = iter(range(0, 100_000, 100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))


def test_a_log_receives_a_line_every_few_minutes(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_watched", lambda: False)
    assert progress.LINE_MINUTES * 60 == 300
    (line,) = report()
    # Three steps in the 300 s after the first; two steps and a validation of 1 s are left.
    assert line == "model epoch 2/2, step 4/6: loss 0.250, 0 images/s, 3 min 21 s left"
    assert capsys.readouterr().err == ""


def test_a_screen_shows_a_bar_and_no_lines(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    assert report() == []
    assert "model epoch 2/2" in capsys.readouterr().err


def test_a_training_that_will_not_end_in_time_warns_once(clock, monkeypatch):
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    monkeypatch.setattr(progress.time, "time", lambda: 0.0)
    (line,) = report(deadline=36.0)
    assert "2 epochs take about" in line
    assert "0.0 h are left" in line


def test_a_terminal_and_jupyterlab_are_watched(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not progress.is_watched()  # papermill, a log file
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/02.ipynb")
    assert progress.is_watched()
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert progress.is_watched()


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_as_text(seconds, text):
    assert progress.format_duration(seconds) == text
