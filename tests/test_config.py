"""Profiles and errors."""

import pytest

from dfd_utils.config import PROFILES, UserError, get_profile


def test_overrides_replace_and_none_keeps():
    profile = get_profile("sample", epochs=3, image_size=None)
    assert profile.epochs == 3
    assert profile.image_size == PROFILES["sample"].image_size


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("fast", {}, "fast"),
        ("sample", {"epoch": 3}, "epoch"),
        ("sample", {"epochs": 0}, "epochs"),
        ("sample", {"epochs": 1.5}, "epochs"),
        ("sample", {"epochs": True}, "epochs"),
        ("sample", {"lr": "fast"}, "lr"),
        ("sample", {"lr": float("nan")}, "lr"),
        ("sample", {"image_size": 8}, "image_size"),
        ("sample", {"crop": 1.5}, "crop"),
        ("sample", {"crop": 0.1}, "crop"),
        ("sample", {"precision": "int8"}, "int8"),
        ("sample", {"ema_decay": 1.5}, "ema_decay"),
    ],
)
def test_bad_settings_are_named(name, settings, named):
    with pytest.raises(UserError, match=named):
        get_profile(name, **settings)


def test_a_file_of_weights_must_exist(tmp_path):
    (tmp_path / "a.pth").touch()
    assert get_profile("sample", weights=str(tmp_path / "a.pth")).weights == str(tmp_path / "a.pth")
    with pytest.raises(UserError, match="neither none, imagenet nor a file"):
        get_profile("sample", weights=str(tmp_path / "b.pth"))


def test_the_error_of_a_worker_process_keeps_its_last_line():
    text = "Caught UserError in DataLoader worker process 0.\nTraceback …\nUserError: a.jpg: empty"
    assert str(UserError(text)) == "a.jpg: empty"
