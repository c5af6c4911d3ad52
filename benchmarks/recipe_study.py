"""What each ingredient of the training recipe is worth, and the recipe beside the course project's.

    python benchmarks/recipe_study.py ablation --data DIR --out FOLDER [--seeds 0,1,2] [--recipes A,B]
    python benchmarks/recipe_study.py test --data DIR --other DIR --out FOLDER [--recipes course,ours]

`ablation` trains the course project's recipe (Adam 1e-3, batch 32, no augmentation, last epoch),
the same with one ingredient added at a time, and ours, and judges them on Validation: as it is, and
degraded (one of the named degradations at severity 3 an image, mean of several draws). `test`
judges chosen recipes on Test, as it is and degraded, and on the other set's Test. All see the same
number of images. Prints mean and standard deviation over the seeds, and the differences from the
first recipe with Welch's 95 % interval.

Finished trainings are kept in FOLDER and not made again: an interrupted study goes on where it was,
and two calls with different --seeds share the work.
"""

import argparse
import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms import v2

from dfd_utils import config
from dfd_utils.data import transforms
from dfd_utils.data.dataset import load_split
from dfd_utils.data.loader import data_loader
from dfd_utils.models.trained import load_model
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.training import components, train

DRAWS = 4  # of the degradations that an AUC on degraded images is the mean of


@dataclass(frozen=True)
class Recipe:
    """A way to train: the profile's settings, and what no setting holds."""

    settings: dict = field(default_factory=dict)
    flip: bool = False  # left and right, in training
    smallest_crop: float = 1.0  # share of the area that a random resized crop keeps
    jitter: float = 0.0  # brightness, contrast and saturation vary by up to this share
    mixup: float = 0.0  # alpha of Zhang et al. 2018
    best_epoch: bool = False  # by Validation, instead of the last
    flip_at_test: bool = False  # mean of the logits of both
    train_scale: float = 1.0  # image size in training, to that in testing (Touvron et al. 2019)


COURSE = {
    "lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 1, "ema_decay": 0.0, "label_smoothing": 0.0,
    "degradation_probability": 0.0,
}  # fmt: skip
OURS = {"degradation_probability": 0.5, "flip_at_test": True}  # studio-lab's and full's
FEW = {
    name: getattr(config.PROFILES["few-images"], name)
    for name in ("degradation_probability", "cutmix_probability", "instance_norm", "flip_at_test")
}
MORE = OURS | {"degradation_probability": 0.8}
BESIDE = {"flip": True, "best_epoch": True}
RECIPES = {
    "course": Recipe(COURSE),
    "best epoch": Recipe(COURSE, best_epoch=True),
    "flip at test": Recipe(COURSE, flip_at_test=True),
    "AdamW and warm-up": Recipe(COURSE | {"weight_decay": 0.05, "warmup_steps": 50}),
    "weight averaging": Recipe(COURSE | {"ema_decay": 0.99}),
    "label smoothing": Recipe(COURSE | {"label_smoothing": 0.1}),
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
    "ours": Recipe(OURS, **BESIDE),
    "ours + instance normalisation": Recipe(OURS | {"instance_norm": True}, **BESIDE),
    "ours + crop": Recipe(OURS, smallest_crop=0.6, **BESIDE),
    "ours + degraded 0.8": Recipe(MORE, **BESIDE),
    "ours + degraded 0.8 + CutMix": Recipe(MORE | {"cutmix_probability": 1.0}, **BESIDE),
    "ours + degraded 0.8 + jitter": Recipe(MORE, jitter=0.4, **BESIDE),
    "ours + degraded 0.8 + jitter + half CutMix": Recipe(
        MORE | {"cutmix_probability": 0.5}, jitter=0.4, **BESIDE
    ),
    "few images": Recipe(FEW, **BESIDE),
}
SCORING = {"best_epoch", "flip_at_test"}  # these need no training of their own


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("ablation", "test"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="the other set, for `test`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipes", help="default: all for `ablation`, course and ours for `test`")
    options = parser.parse_args()
    names = list(RECIPES) if options.what == "ablation" else ["course", "ours"]
    names = options.recipes.split(",") if options.recipes else names
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for name in names:
            profile = config.get_profile(
                "sample", image_size=options.image_size, epochs=options.epochs, seed=seed,
                precision=options.precision, num_workers=options.num_workers, keep_epochs=True,
            )  # fmt: skip
            run = trained(options.model, options.data, options.out, RECIPES[name], profile)
            sets = {"": (options.data, "Validation")}
            if options.what == "test":
                sets = {"": (options.data, "Test"), "other set, ": (options.other, "Test")}
            judged = {}
            for prefix, (data, split) in sets.items():
                scores = auc_of(run, data, split, RECIPES[name])
                scores |= {"lost": scores["clean"] - scores["degraded"]}
                judged |= {f"{prefix}{key}": value for key, value in scores.items()}
            rows.append({"recipe": name, "seed": seed, **judged})
    print(summary(pd.DataFrame(rows)))


def trained(model: str, data: Path, out: Path, chosen: Recipe, profile: config.Profile) -> Path:
    """Return the run's folder, trained unless it is there; only its first and last model stay."""
    size = round(profile.image_size * chosen.train_scale)
    profile = dataclasses.replace(profile, image_size=size, **chosen.settings)
    training = {k: v for k, v in dataclasses.asdict(chosen).items() if k not in SCORING}
    key = json.dumps({"epochs": profile.epochs, **training}, sort_keys=True)
    key = key.replace('"', "").replace(" ", "").replace("{", "").replace("}", "")
    run = out / data.name / f"{model}-{profile.image_size}-{key}" / f"seed{profile.seed}" / model
    if not (run / "model.json").is_file():
        extra = recipe_patches(chosen)
        with extra[0], extra[1]:
            train.fit(model, data, run, profile)
        shutil.rmtree(run / "checkpoint", ignore_errors=True)
        for folder in sorted((run / "epochs").iterdir())[:-1]:
            shutil.rmtree(folder)
    return run


def recipe_patches(chosen: Recipe) -> tuple:
    """Return patches that put the ingredients without a setting into the training."""

    def train_transform(profile: config.Profile) -> v2.Transform:
        steps = [v2.RandomHorizontalFlip()] if chosen.flip else []
        if profile.degradation_probability:
            some = v2.RandomApply([transforms.RandomDegradation()], profile.degradation_probability)
            steps.append(some)
        size, share = profile.image_size, chosen.jitter
        if chosen.smallest_crop < 1:
            scale = chosen.smallest_crop, 1.0
            steps.append(v2.RandomResizedCrop(size, scale, antialias=True))
        else:
            steps.append(transforms.eval_transform(size))
        if share:
            steps.append(v2.ColorJitter(brightness=share, contrast=share, saturation=share))
        return v2.Compose(steps)

    backward = components.TrainingComponents.backward

    def mixed(training: components.TrainingComponents, images: Tensor, labels: Tensor) -> Tensor:
        if chosen.mixup:
            mix = v2.MixUp(alpha=chosen.mixup, num_classes=len(config.CLASSES))
            images, labels = mix(images.float(), labels)
        return backward(training, images, labels)

    return (
        mock.patch.object(components, "train_transform", train_transform),
        mock.patch.object(components.TrainingComponents, "backward", mixed),
    )


def auc_of(run: Path, data: Path, split: str, chosen: Recipe) -> dict[str, float]:
    """Return AUC on a split as it is and degraded; kept beside the run."""
    size = json.loads((run / "model.json").read_text())["image_size"]
    size = round(size / chosen.train_scale)
    which = "best" if chosen.best_epoch else "last"
    kept = run / f"{data.name}_{split}_{which}{'_flip' * chosen.flip_at_test}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    folder = run if chosen.best_epoch else max((run / "epochs").iterdir())
    model, _ = load_model(folder)
    degraded = transforms.degraded_transform(size)
    views = [load_split(data, split, transforms.eval_transform(size))]
    views += [load_split(data, split, degraded, seed=1000 + draw) for draw in range(DRAWS)]
    aucs = [_auc(model, view, chosen.flip_at_test) for view in views]
    found = {"clean": aucs[0], "degraded": sum(aucs[1:]) / DRAWS}
    kept.write_text(json.dumps(found))
    return found


@torch.inference_mode()
def _auc(model: torch.nn.Module, view: torch.utils.data.Dataset, flip: bool) -> float:
    model = model.to(make_accelerator("fp32").device)
    margins, labels = [], []
    for images, targets in data_loader(view, 64, num_workers=0):
        logits = model(images) + model(images.flip(-1)) if flip else model(images)
        margins.append((logits[:, 1] - logits[:, 0]).cpu())
        labels.append(targets)
    return float(roc_auc_score(torch.cat(labels), torch.cat(margins)))


def summary(table: pd.DataFrame) -> str:
    """Return mean ± standard deviation over the seeds, a row a recipe, as Markdown.

    A second row has the difference from the first recipe, with Welch's interval.
    """
    metrics = [c for c in table.columns if c not in ("recipe", "seed")]
    lines = ["| recipe | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, part in table.groupby("recipe", sort=False):
        cells = [f"{part[m].mean():.3f} ± {part[m].std():.3f}" for m in metrics]
        lines.append("| " + " | ".join([name, *cells]) + " |")
        first = table[table["recipe"] == table["recipe"].iloc[0]]
        if name != first["recipe"].iloc[0] and min(len(part), len(first)) > 1:
            cells = [_difference(part[m], first[m]) for m in metrics]
            lines.append("| " + " | ".join(["difference", *cells]) + " |")
    return "\n".join(lines)


def _difference(some: pd.Series, others: pd.Series) -> str:
    low, high = ttest_ind(some, others, equal_var=False).confidence_interval()
    return f"{some.mean() - others.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
