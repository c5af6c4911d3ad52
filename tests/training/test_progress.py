from types import SimpleNamespace

import pytest
import torch

from dfd_utils.training import progress


def show(deadline=float("inf"), steps=6):
    lines = []
    shown = progress.Progress("model", 2, steps, 8, deadline, lines.append)
    rows = [{"seconds": 3.0, "images_per_second": 24.0}]  # 2 s of training, 1 s of judging
    state = SimpleNamespace(epoch=2, step=0, images=0, loss_sum=torch.zeros(()), rows=rows)
    shown.begin(state)
    for _ in range(4):
        state.step += 1
        state.images += 8
        state.loss_sum += 8 * 0.25
        shown.step(state)
    shown.end()
    return lines


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes 100 seconds on at each look."""
    now = iter(range(0, 100_000, 100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))


def test_an_unwatched_training_tells_a_line_now_and_then(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress, "watched", lambda: False)
    assert progress.LINE_MINUTES * 60 == 300
    (line,) = show()
    # three steps in the 300 s after the first: two steps and one judging (1 s) are left
    assert line == "model epoch 2/2, step 4/6: loss 0.250, 0 images/s, 3 min 21 s left"
    assert capsys.readouterr().err == ""


def test_a_watched_training_shows_a_bar_and_no_lines(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress, "watched", lambda: True)
    assert show() == []
    bar = capsys.readouterr().err
    assert "model epoch 2/2" in bar


def test_a_training_that_will_not_end_in_time_is_told_once(clock, monkeypatch):
    monkeypatch.setattr(progress, "watched", lambda: True)
    monkeypatch.setattr(progress.time, "time", lambda: 0.0)
    (line,) = show(deadline=36.0)
    assert "2 epochs take about" in line
    assert "0.0 h are left" in line


def test_who_watches(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not progress.watched()  # papermill, a log file
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/02.ipynb")
    assert progress.watched()


@pytest.mark.parametrize(
    ("seconds", "words"), [(44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds, words):
    assert progress.duration(seconds) == words
