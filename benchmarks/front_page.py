"""What the front pages show of a run: the table and the picture in README.md, and the badges.

    python -m benchmarks.front_page [--run sample]    write them; call it after ./run_all.sh
    python -m benchmarks.front_page --check           are they stale? says how; exit code 1 if so
    python -m benchmarks.front_page --check --run sample    and is the table that of this run?

Table and picture come from the run's files. The badges of README.md and of the first notebook
lead to the address `Repository` in pyproject.toml.
"""

import argparse
import re
import tomllib

import nbformat
from PIL import Image

from dfd_utils import config
from dfd_utils.data.folder import DataFolder
from dfd_utils.models import trained
from dfd_utils.reporting.front_matter import on_test, results_table

README = config.PROJECT_ROOT / "README.md"
FIRST = config.PROJECT_ROOT / "notebooks" / "01_explore_data.ipynb"
PICTURE = config.PROJECT_ROOT / "figures" / "readme" / "sample.png"
BADGES = {  # name: image, address of the opened notebook
    "Open in SageMaker Studio Lab": (
        "https://studiolab.sagemaker.aws/studiolab.svg",
        "https://studiolab.sagemaker.aws/import/github/{name}/blob/main/{notebook}",
    ),
    "Open in Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        "https://colab.research.google.com/github/{name}/blob/main/{notebook}",
    ),
    "Open in Kaggle": (
        "https://kaggle.com/static/images/open-in-kaggle.svg",
        "https://kaggle.com/kernels/welcome?src={address}/blob/main/{notebook}",
    ),
}


def badges() -> str:
    """Return the badges as a line of Markdown, for the repository named in pyproject.toml.

    It is a line of its own: what follows a comment in its line would be no Markdown.
    """
    project = tomllib.loads((config.PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    place = {
        "address": address,
        "name": address.removeprefix("https://github.com/"),
        "notebook": str(FIRST.relative_to(config.PROJECT_ROOT)),
    }
    links = [f"[![{t}]({image})]({link.format(**place)})" for t, (image, link) in BADGES.items()]
    return f"\n{' '.join(links)}\n"


def results(run: str) -> str:
    """Return the table of a run's results on Test, below a line that says what they depend on."""
    run_folder, data = config.BUILD_DIR / "runs" / run, DataFolder("data/sample")
    models = on_test(run_folder, data)
    if not models:
        raise config.UserError(f"{run_folder}: no results on Test; call ./run_all.sh first")
    entries = {title: model.metrics(data, "Test") for title, model in models.items()}
    made = f"version {trained.VERSION}, {data.audit_summary['fingerprint']}"
    return f"\n<!-- {made} -->\n\n{results_table(models, entries)}\n"


def replaced(text: str, name: str, new: str) -> str:
    """Return text with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = f"(?<={re.escape(start)}).*?(?={re.escape(end)})"
    found = re.subn(pattern, lambda _: new, text, flags=re.DOTALL)
    if found[1] != 1:
        raise config.UserError(f"there has to be one {start} and one {end}")
    return found[0]


def stale() -> list[str]:
    """Return what is stale, as far as that can be told without a run: badges, table's version."""
    problems = [
        f"{path.name}: the badges do not lead to the repository in pyproject.toml"
        for path, text in (
            (README, README.read_text()),
            (FIRST, nbformat.read(FIRST, 4).cells[0].source),
        )
        if badges() not in text
    ]
    if f"<!-- version {trained.VERSION}, " not in README.read_text():
        problems.append("README.md: the table is by another version of the models' results")
    return problems


def main() -> int:
    """Write the front pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="default: sample")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        problems = stale()
        if options.run and results(options.run) not in README.read_text():
            problems.append(f"README.md: the table is not that of the run {options.run}")
        print("\n".join(problems) or "up to date")
        return bool(problems)
    name = options.run or "sample"
    text = replaced(README.read_text(), "badges", badges())
    README.write_text(replaced(text, "results", results(name)))
    book = nbformat.read(FIRST, as_version=4)
    book.cells[0].source = replaced(book.cells[0].source, "badges", badges())
    nbformat.write(book, FIRST)
    picture = Image.open(config.FIGURES_DIR / name / "01_gallery.png").convert("RGB")
    picture.thumbnail((1000, 1000))
    picture.quantize(256).save(PICTURE, optimize=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
