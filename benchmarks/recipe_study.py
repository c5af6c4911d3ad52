"""What each ingredient of the training recipe is worth, and the recipe beside the course project's.

    python benchmarks/recipe_study.py ablation --data DIR --out FOLDER [--seeds 0,1] [--recipes A,B]
    python benchmarks/recipe_study.py test --data DIR --other DIR --out FOLDER [--recipes A,B]
        [--model efficientnet_lite0] [--challenge DIR]

`ablation` trains the course project's recipe (Adam 1e-3, batch 32, no augmentation, last epoch),
the same with one ingredient added at a time, and ours, and evaluates them on Validation: on the
original images, and degraded (a random composition per image, mean of several draws). `test`
evaluates recipes (default: the course project's and ours) on Test, original and degraded, on the
other set's Test, and with --challenge on images degraded by others. All recipes see the same number
of images, unless they have epochs of their own. Prints mean and standard deviation over the seeds,
and the differences from the first recipe with Welch's 95 % interval.

Finished trainings are kept in FOLDER and not repeated: an interrupted study continues, and two
calls with different --seeds share the work.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score
from torch import nn
from torchvision.transforms import v2

from dfd_utils import config
from dfd_utils.data import transforms
from dfd_utils.data.dataset import DeepFakeDataset
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.loader import data_loader
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.training import components, train

DRAWS = 4  # the AUC on degraded images is the mean of so many draws of the degradations


@dataclass(frozen=True)
class Recipe:
    """A way to train: settings of the profile, and ingredients for which there is no setting."""

    settings: dict = field(default_factory=dict)
    flip: bool = False  # random horizontal flips in training
    smallest_crop: float = 1.0  # share of the area that a random resized crop keeps at least
    jitter: float = 0.0  # brightness, contrast and saturation vary by up to this share
    mixup: float = 0.0  # alpha of Zhang et al. 2018
    label_smoothing: float = 0.0
    best_epoch: bool = False  # the best on Validation instead of the last
    flip_at_test: bool = False  # mean of the logits of an image and its mirror image
    train_scale: float = 1.0  # image size in training / in testing (Touvron et al. 2019)


COURSE = {
    "lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 1, "ema_decay": 0.0,
    "degradation_probability": 0.0,
}  # fmt: skip
OURS = {"degradation_probability": 0.5, "flip_at_test": True}  # studio-lab's and full's
FEW = {
    name: getattr(config.PROFILES["few-images"], name)
    for name in ("degradation_probability", "cutmix_probability", "instance_norm", "flip_at_test")
}
FINE = {
    name: getattr(config.PROFILES["fine-tuning"], name)
    for name in (
        "image_size", "crop", "epochs", "lr", "warmup_steps", "degradation_probability",
        "flip_at_test", "weights",
    )
}  # fmt: skip
MORE = OURS | {"degradation_probability": 0.8}
ALWAYS = {"flip": True, "best_epoch": True}  # in every training of the package
RECIPES = {
    "course": Recipe(COURSE),
    "best epoch": Recipe(COURSE, best_epoch=True),
    "flip at test": Recipe(COURSE, flip_at_test=True),
    "AdamW and warm-up": Recipe(COURSE | {"weight_decay": 0.05, "warmup_steps": 50}),
    "weight averaging": Recipe(COURSE | {"ema_decay": 0.99}),
    "label smoothing": Recipe(COURSE, label_smoothing=0.1),
    "flip": Recipe(COURSE, flip=True),
    "crop": Recipe(COURSE, smallest_crop=0.6),
    "mixup": Recipe(COURSE, mixup=0.2),
    "CutMix": Recipe(COURSE | {"cutmix_probability": 0.5}),
    "instance normalisation": Recipe(COURSE | {"instance_norm": True}),
    "jitter": Recipe(COURSE, jitter=0.4),
    "smaller in training": Recipe(COURSE, train_scale=0.75),
    "degraded 0.2": Recipe(COURSE | {"degradation_probability": 0.2}),
    "degraded 0.5": Recipe(COURSE | {"degradation_probability": 0.5}),
    "degraded 0.8": Recipe(COURSE | {"degradation_probability": 0.8}),
    "ours": Recipe(OURS, **ALWAYS),
    "ours + instance normalisation": Recipe(OURS | {"instance_norm": True}, **ALWAYS),
    "ours + crop": Recipe(OURS, smallest_crop=0.6, **ALWAYS),
    "ours + degraded 0.8": Recipe(MORE, **ALWAYS),
    "ours + degraded 0.8 + CutMix": Recipe(MORE | {"cutmix_probability": 1.0}, **ALWAYS),
    "ours + degraded 0.8 + jitter": Recipe(MORE, jitter=0.4, **ALWAYS),
    "ours + degraded 0.8 + jitter + half CutMix": Recipe(
        MORE | {"cutmix_probability": 0.5}, jitter=0.4, **ALWAYS
    ),
    "few images": Recipe(FEW, **ALWAYS),
    "fine-tuning": Recipe(FINE, **ALWAYS),
    "fine-tuning, whole images": Recipe(FINE | {"crop": 1.0}, **ALWAYS),
}
SCORING = ("best_epoch", "flip_at_test")  # fields that need no training of their own


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("ablation", "test"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="the other set, for `test`")
    parser.add_argument("--challenge", type=Path, help="the set, degraded by others, for `test`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipes", help="default: all for `ablation`, course and ours for `test`")
    options = parser.parse_args()
    if options.study == "test" and options.other is None:
        parser.error("test requires --other DIR")
    names = list(RECIPES) if options.study == "ablation" else ["course", "ours"]
    names = options.recipes.split(",") if options.recipes else names
    sets = {"": (DataFolder(options.data.absolute()), "Validation")}
    if options.study == "test":
        sets = {"": (DataFolder(options.data.absolute()), "Test")}
        sets["other set, "] = DataFolder(options.other.absolute()), "Test"
        if options.challenge:
            sets["challenge, "] = DataFolder(options.challenge.absolute()), "Test"
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for name in names:
            profile = config.get_profile(
                "sample", image_size=options.image_size, epochs=options.epochs, seed=seed,
                precision=options.precision, num_workers=options.num_workers, keep_epochs=True,
            )  # fmt: skip
            run = trained_run(options.model, sets[""][0], options.out, RECIPES[name], profile)
            row = {"recipe": name, "seed": seed}
            for prefix, (data, split) in sets.items():
                aucs = measure_aucs(run, data, split, RECIPES[name])
                aucs["lost"] = aucs["clean"] - aucs["degraded"]
                row |= {f"{prefix}{key}": value for key, value in aucs.items()}
            rows.append(row)
    print(summary(pd.DataFrame(rows)))


def trained_run(
    model: str, data: DataFolder, out: Path, recipe: Recipe, profile: config.Profile
) -> Path:
    """Return the run's folder, trained unless it exists; keep its best and its last model."""
    size = round(profile.image_size * recipe.train_scale)
    profile = dataclasses.replace(profile, **{"image_size": size} | recipe.settings)
    fields = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in SCORING}
    key = json.dumps({"epochs": profile.epochs, **fields}, sort_keys=True)
    key = key.replace('"', "").replace(" ", "").replace("{", "").replace("}", "")
    run = out / data.name / f"{model}-{profile.image_size}-{key}" / f"seed{profile.seed}" / model
    if not (run / "model.json").is_file():
        with mock.patch.object(train, "build_components", components_builder(recipe)):
            train.fit(model, data, run, profile)
        shutil.rmtree(run / "checkpoint", ignore_errors=True)
        for folder in sorted((run / "epochs").iterdir())[:-1]:
            shutil.rmtree(folder)
    return run


def components_builder(recipe: Recipe) -> Callable[..., components.TrainingComponents]:
    """Return `build_components` with the recipe's ingredients for which there is no setting."""

    def train_transform(profile: config.Profile) -> v2.Transform:
        steps = [v2.RandomHorizontalFlip()] if recipe.flip else []
        if probability := profile.degradation_probability:
            steps.append(v2.RandomApply([transforms.RandomDegradation()], probability))
        size, share = profile.image_size, recipe.jitter
        if recipe.smallest_crop < 1:
            scale = recipe.smallest_crop, 1.0
            steps.append(v2.RandomResizedCrop(size, scale, antialias=True))
        else:
            steps.append(transforms.eval_transform(size))
        if profile.crop < 1:
            steps.append(v2.RandomCrop(round(profile.crop * size)))
        if share:
            steps.append(v2.ColorJitter(brightness=share, contrast=share, saturation=share))
        return v2.Compose(steps)

    def build(*arguments: object) -> components.TrainingComponents:
        with mock.patch.object(components, "train_transform", train_transform):
            training = components.build_components(*arguments)
        training.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        if recipe.mixup:
            mixup = v2.MixUp(alpha=recipe.mixup, num_classes=len(config.CLASSES))
            accumulate = training.accumulate_gradients
            training.accumulate_gradients = lambda images, labels: accumulate(
                *mixup(images.float(), labels)
            )
        return training

    return build


def measure_aucs(run: Path, data: DataFolder, split: str, recipe: Recipe) -> dict[str, float]:
    """Return the AUC on a split, clean and degraded; kept in a file of the run's folder."""
    size = round(TrainedModel(run).description.image_size / recipe.train_scale)
    epoch = "best" if recipe.best_epoch else "last"
    kept = run / f"{data.name}_{split}_{epoch}{'_flip' * recipe.flip_at_test}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    folder = run if recipe.best_epoch else max((run / "epochs").iterdir())
    network = TrainedModel(folder).load()
    resize = transforms.eval_transform(size)
    degraded = v2.Compose([transforms.RandomDegradation(), resize])
    views = [data.split(split, resize)]
    views += [data.split(split, degraded, seed=1000 + draw) for draw in range(DRAWS)]
    aucs = [_auc(network, view, recipe.flip_at_test) for view in views]
    aucs = {"clean": aucs[0], "degraded": sum(aucs[1:]) / DRAWS}
    kept.write_text(json.dumps(aucs))
    return aucs


@torch.inference_mode()
def _auc(network: nn.Module, view: DeepFakeDataset, flip: bool) -> float:
    device = make_accelerator("fp32").device
    network = network.to(device)
    margins, labels = [], []
    for images, targets in data_loader(view, 64, num_workers=0):
        images = images.to(device)
        logits = network(images) + network(images.flip(-1)) if flip else network(images)
        margins.append((logits[:, 1] - logits[:, 0]).cpu())
        labels.append(targets)
    return float(roc_auc_score(torch.cat(labels), torch.cat(margins)))


def summary(table: pd.DataFrame) -> str:
    """Return mean ± standard deviation over the seeds as Markdown, a row per recipe.

    A second row has the difference from the first recipe, with Welch's interval.
    """
    metrics = [c for c in table.columns if c not in ("recipe", "seed")]
    lines = ["| recipe | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    first = table[table["recipe"] == table["recipe"].iloc[0]]
    for name, part in table.groupby("recipe", sort=False):
        cells = [f"{part[m].mean():.3f} ± {part[m].std():.3f}" for m in metrics]
        lines.append("| " + " | ".join([name, *cells]) + " |")
        if name != first["recipe"].iloc[0] and min(len(part), len(first)) > 1:
            cells = [_difference(part[m], first[m]) for m in metrics]
            lines.append("| " + " | ".join(["difference", *cells]) + " |")
    return "\n".join(lines)


def _difference(a: pd.Series, b: pd.Series) -> str:
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval()
    return f"{a.mean() - b.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
