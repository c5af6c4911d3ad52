"""Are the intermediate models of one run as good as separate runs of 1, 3, 5 and 8 epochs?

    python benchmarks/epoch_study.py --data DIR --out FOLDER [--image-size 64] [--seeds 0,1,2]
        [--models resnet50,efficientnet_b0] [--epochs 1,3,5,8] [--profile sample]

Trains, for each model and seed, one run of the longest length and a separate run of every length,
with two schedules: `averaged`, the project's (constant rate, averaged weights), and `course`, the
course project's (constant 1e-3, no averaging, no weight decay, no warm-up). Each epoch is evaluated
on Validation. A separate run counts with its last epoch. Its seed is 1000 higher: with the same
seed and a constant rate it would repeat the long run's first epochs bit for bit.

Finished runs are kept in FOLDER and not trained again: an interrupted study continues. Prints mean
and standard deviation over the seeds, the paired difference (one run minus separate), and the
training time of both.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

import pandas as pd

from dfd_utils import config
from dfd_utils.data.folder import DataFolder
from dfd_utils.training.train import fit

SCHEDULES = {
    "averaged": {},
    "course": {"lr": 1e-3, "ema_decay": 0.0, "weight_decay": 0.0, "warmup_steps": 1},
}
METRICS = ("auc", "accuracy")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="sample")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", default="1,3,5,8")
    parser.add_argument("--models", default="resnet50,efficientnet_b0")
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    options = parser.parse_args()
    lengths = [int(text) for text in options.epochs.split(",")]
    profile = config.get_profile(
        options.profile,
        image_size=options.image_size,
        batch_size=options.batch_size,
        precision=options.precision,
    )
    data, rows = DataFolder(options.data.absolute()), []
    for schedule in options.schedules.split(","):
        for model in options.models.split(","):
            for seed in map(int, options.seeds.split(",")):
                chosen = dataclasses.replace(profile, seed=seed, **SCHEDULES[schedule])
                folder = options.out / schedule / model / f"seed{seed}"
                part = study(model, data, folder, chosen, lengths)
                rows += [{"schedule": schedule, **row} for row in part]
    table = pd.DataFrame(rows)
    print(summary(table, lengths).to_string(index=False, float_format="%.4f"))
    for way, seconds in table.groupby("way")["training_seconds"].sum().items():
        print(f"{way}: {seconds / 60:.1f} min of training")
    print(f"epochs: {max(lengths)} instead of {sum(lengths)}, {max(lengths) / sum(lengths):.0%}")


def study(
    model: str, data: DataFolder, folder: Path, profile: config.Profile, lengths: list[int]
) -> list[dict]:
    """Train the long run and the separate ones of one seed; return a row per way and length."""
    one_run = dataclasses.replace(profile, epochs=max(lengths))
    histories = {"one run": train(model, data, folder / "one", one_run)}
    rows = []
    for length in lengths:
        separate = dataclasses.replace(profile, epochs=length, seed=profile.seed + 1000)
        histories["separate"] = train(model, data, folder / f"separate{length}", separate)
        for way, history in histories.items():
            row = history.iloc[length - 1]
            first = max((n for n in lengths if n < length), default=0) if way == "one run" else 0
            seconds = history["seconds"].iloc[first:length].sum()  # each epoch is counted once
            rows.append({
                "model": model, "seed": profile.seed, "epochs": length, "way": way,
                "training_seconds": seconds, **{name: row[name] for name in METRICS},
            })  # fmt: skip
    return rows


def train(model: str, data: DataFolder, out: Path, profile: config.Profile) -> pd.DataFrame:
    """Return the history of a run, trained unless it is complete; delete its checkpoint."""
    history = fit(model, data, out / model, profile)
    shutil.rmtree(out / model / "checkpoint", ignore_errors=True)
    return history


def summary(table: pd.DataFrame, lengths: list[int]) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds, and the paired difference's."""
    rows = []
    for (schedule, model), part in table.groupby(["schedule", "model"]):
        for length in lengths:
            at = part[part["epochs"] == length].set_index("seed")
            for name in METRICS:
                one = at.loc[at["way"] == "one run", name]
                separate = at.loc[at["way"] == "separate", name]
                rows.append({
                    "schedule": schedule, "model": model, "epochs": length, "metric": name,
                    "one run": one.mean(), "sd": one.std(),
                    "separate": separate.mean(), "sd ": separate.std(),
                    "difference": (one - separate).mean(), "sd  ": (one - separate).std(),
                })  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
