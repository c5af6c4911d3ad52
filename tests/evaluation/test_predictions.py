"""Files of predictions."""

import numpy as np
import pandas as pd
import pytest

from dfd_utils.config import UserError
from dfd_utils.evaluation.predictions import read_predictions


def test_predictions_are_read_to_the_last_bit(tmp_path):
    paths = [f"Test/Fake/{number}.jpg" for number in range(20)]
    scores = np.random.default_rng(0).random(20)
    frame = pd.DataFrame({"path": paths, "label": np.arange(20) % 2, "score": scores})
    frame.loc[0, "path"] = "NA"
    frame.assign(more="x").to_csv(tmp_path / "p.csv", index=False)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.csv"), frame)
    frame["logit"] = scores * 100 - 50
    frame.to_csv(tmp_path / "p.csv", index=False)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.csv"), frame)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("", "not a readable CSV"),
        ("path,label,score\n", "no predictions"),
        ("path,score\na,0.5\n", "column label is missing"),
        ("path,label,score\na,0,0.5\na,1,0.5\n", "1 paths repeated, as a"),
        ("path,label,score\na,0,0.5\nb,2,0.5\n", "found 'b,2,0.5'"),
        ("path,label,score\na,0,1.5\n", "found 'a,0,1.5'"),
        ("path,label,score\na,0,\n", "found 'a,0,"),
        ("path,label,score\na,0,nan\n", "found 'a,0,nan'"),
        ("path,label,score\na,Fake,0.5\n", "found 'a,Fake,0.5'"),
        ("path,label,score,logit\na,1,0.5,0\nb,1,1,inf\n", "found 'b,1,1,inf'"),
        ("path,label,score,logit\na,1,0.5,\n", "found 'a,1,0.5,'"),
        ("path,label,score\na,0,0.5\nb,1,0.5,7,8\n", "not a readable CSV"),
    ],
)
def test_invalid_files_are_refused_by_name(tmp_path, text, words):
    path = tmp_path / "predictions_Test.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)
