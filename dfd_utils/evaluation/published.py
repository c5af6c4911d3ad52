"""The results that the course project published, for comparison."""

from io import StringIO

import pandas as pd

# The course project's own table (Hanyang University, AI & Application, group G08, fall 2024):
# trained from scratch at 224 px on the whole Kaggle set, evaluated on its Test after every epoch.
PUBLISHED = """model,epochs,accuracy,precision,recall,f1score
ResNet50,1,0.8850,0.9587,0.8064,0.8760
ResNet50,3,0.9222,0.9365,0.9071,0.9216
ResNet50,5,0.9446,0.9675,0.9210,0.9437
ResNet50,8,0.9359,0.9540,0.9170,0.9351
EfficientNet-B0,1,0.8906,0.8722,0.9172,0.8941
EfficientNet-B0,3,0.9005,0.8694,0.9443,0.9053
EfficientNet-B0,5,0.9159,0.8827,0.9607,0.9200
EfficientNet-B0,8,0.9240,0.9452,0.9013,0.9227
"""


def published_results() -> pd.DataFrame:
    """Return the published results on Test: model, epochs, accuracy, precision, recall, f1score."""
    return pd.read_csv(StringIO(PUBLISHED))
