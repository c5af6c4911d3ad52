"""The plan of a study: its time adds up, and the message says how many epochs fit."""

import dataclasses

import pytest

from dfd_utils.training import plan


@pytest.mark.parametrize(("hours", "message"), [
    (1.0, "the 3 that remain fit"),
    (1e-4, "warning: 0 epochs with evaluation fit into 0.0001 h, but 3 remain"),
])  # fmt: skip
def test_a_plan_adds_up_and_says_what_fits(easy_data, quick, monkeypatch, tmp_path, hours, message):
    monkeypatch.setattr(plan, "SECONDS", 0.5)
    out = tmp_path / "efficientnet_b0"
    out.mkdir()
    (out / "history.csv").write_text("epoch\n1\n")  # one epoch is done already
    lines = []
    profile = dataclasses.replace(quick, epochs=4, max_hours=hours, num_workers=1)
    table = plan.plan(["efficientnet_b0"], easy_data, profile, tmp_path, lines.append)
    (row,) = table.itertuples()
    assert row.epochs == 3
    assert row.seconds == pytest.approx(3 * row.epoch_seconds + row.fixed_seconds)
    assert row.fixed_seconds > 16 / row.score_images_per_second * 0.5
    # 48 images to train on, 16 for validation
    least = 48 / row.train_images_per_second + 16 / row.score_images_per_second
    assert row.epoch_seconds > least * 0.5  # the machine may have had other work
    assert message in lines[-1]
    assert "3 epochs and the evaluation" in lines[0]


def test_the_first_steps_are_extrapolated_to_a_whole_pass():
    # 5 s until the first step is done, two slow steps, then 1 s per step
    times = iter([0.0, 5.0, 8.0, 10.0, 11.0, 12.0, 13.0])
    clock = plan.Clock(lambda: next(times))
    for _ in range(6):
        clock.tick()
    assert clock.step == 1.0
    assert clock.extrapolate(100) == 13 + 94
    assert clock.extrapolate(6) == 13
