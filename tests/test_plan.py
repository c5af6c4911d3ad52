import dataclasses

import pytest

from dfd_utils import plan


@pytest.mark.parametrize(("hours", "told"), [(1.0, "do fit"), (1e-4, "warning: 0.0001 h hold 0")])
def test_a_plan_adds_up_and_says_what_fits(easy_data, quick, monkeypatch, tmp_path, hours, told):
    monkeypatch.setattr(plan, "SECONDS", 0.5)
    out = tmp_path / "efficientnet_b0"
    out.mkdir()
    (out / "history.csv").write_text("epoch\n1\n")  # one epoch is done already
    lines = []
    profile = dataclasses.replace(quick, epochs=4, max_hours=hours, num_workers=1)
    table = plan.plan(["efficientnet_b0"], easy_data, profile, tmp_path, lines.append)
    (row,) = table.itertuples()
    assert row.epochs == 3
    assert row.seconds == pytest.approx(3 * row.epoch_seconds + row.evaluation_seconds)
    # 48 images to train on, 16 to judge
    least = 48 / row.train_images_per_second + 16 / row.score_images_per_second
    assert row.epoch_seconds > least * 0.99
    assert told in lines[-1]
    assert "3 epochs and the evaluation" in lines[0]


def test_pace_of_an_epoch():
    pace = plan.Pace(
        start=2.0, step=0.5, batch=0.25, checkpoint=1.0, steps=100, validation_batches=8,
        test_batches=4,
    )  # fmt: skip
    assert pace.epoch == 2 + 50 + (2 + 2) + 1
    assert pace.evaluation == 2 + 1
