import pytest

from dfd_utils.config import PROFILES, UserError, get_profile
from dfd_utils.data.folder import data_path
from dfd_utils.runtime.files import write_atomic


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
        ("sample", {"precision": "int8"}, "int8"),
        ("sample", {"ema_decay": 1.5}, "ema_decay"),
    ],
)
def test_bad_settings_are_named(name, settings, named):
    with pytest.raises(UserError, match=named):
        get_profile(name, **settings)


def test_missing_data_folder_is_named():
    with pytest.raises(UserError, match="no-such-data"):
        data_path("no-such-data")


def test_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    place = write_atomic(tmp_path / "a.txt", "before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"a\.txt.*No space left"):
        write_atomic(place, "after")
    assert place.read_text() == "before"


def test_write_below_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "a.txt", "text")
