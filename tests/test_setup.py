"""run_all.sh's choice of environment, with stubs in place of Pythons and installers; the bounds."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from dfd_utils.config import PROJECT_ROOT

# Stands for python3, an environment's python, pip and uv: notes its call and makes what it would.
# Files in its environment: `pip`, `no-ensurepip`, `offline`, `no-torch-index`, `no-tests`, and
# `lacks`, which holds the output of a failed check.
STUB = """#!/bin/bash
folder=$(dirname "$0")/..
echo "$(basename "$0") $*" >>"$LOG"
make() { mkdir -p "$1/bin" && cp "$0" "$1/bin/python"; }
case "$*" in
  "-m venv "*) make "$3"; [ ! -e "$folder/no-ensurepip" ] && touch "$3/pip" ;;
  "venv "*) make "${!#}" ;;
  "-m pip --version") [ -e "$folder/pip" ] ;;
  *" --torch-backend "*) [ ! -e "$folder/no-torch-index" ] ;;
  *" install "*) [ ! -e "$folder/offline" ] ;;
  *import*accelerate*) [ ! -e "$folder/lacks" ] || { cat "$folder/lacks" >&2; exit 1; } ;;
  *import*pytest*) [ ! -e "$folder/no-tests" ] || { echo "no pytest" >&2; exit 1; } ;;
esac
"""

FOREIGN = "import sys; sys.path.insert(0, 'foreign'); import dfd_utils; sys.path.pop(0)"


def stub(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STUB)
    path.chmod(0o755)
    return path


class Machine:
    """A checkout with nothing but run_all.sh and pyproject.toml, and a PATH with a stub python3."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log"
        self.checkout, self.venv = folder / "checkout", folder / "checkout" / ".venv"
        self.checkout.mkdir()
        for name in ("run_all.sh", "pyproject.toml"):
            shutil.copy(PROJECT_ROOT / name, self.checkout)
        stub(folder / "usr" / "bin" / "python3")

    def environment(self, name: str, lacks: str = "") -> str:
        python = stub(self.folder / name / "bin" / "python")
        if lacks:
            (python.parents[1] / "lacks").write_text(f"Traceback\n{lacks}\n")
        return str(self.folder / name)

    def run(self, *arguments, script="checkout/run_all.sh", **variables):
        self.log.write_text("")
        path = f"{self.folder}/usr/bin:/usr/bin:/bin"
        variables = {"PATH": path, "HOME": str(self.folder), "LOG": str(self.log)} | variables
        command = [str(self.folder / script), *arguments]
        return subprocess.run(
            command, env=variables, cwd=self.folder, capture_output=True, text=True, timeout=60
        )

    def installed(self) -> bool:
        return " install " in self.log.read_text()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_second_call_does_not_install_again(machine):
    first = machine.run("setup")
    assert first.returncode == 0 and machine.installed()
    assert first.stdout.endswith(f"environment: {machine.venv}/bin/python\n")
    assert machine.run("setup").stdout == f"environment: {machine.venv}/bin/python\n"
    assert not machine.installed()
    with (machine.checkout / "pyproject.toml").open("a") as file:
        file.write("# a new dependency\n")
    machine.run("setup")
    assert machine.installed() and "-m venv" not in machine.log.read_text()


def test_the_virtual_environment_comes_before_conda_and_either_has_to_be_complete(machine):
    good = machine.environment("good")
    bad = machine.environment("bad", "ModuleNotFoundError: No module named 'papermill'")
    taken = f"environment: {good}/bin/python\n"
    assert machine.run("setup", VIRTUAL_ENV=good, CONDA_PREFIX=bad).stdout == taken
    assert machine.run("setup", VIRTUAL_ENV=bad, CONDA_PREFIX=good).stdout == taken
    assert not machine.installed()
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        output = machine.run("setup", **{variable: bad}).stdout
        assert output.endswith(f"environment: {machine.venv}/bin/python\n")
        shutil.rmtree(machine.venv)
        assert f"{bad} is not used: ModuleNotFoundError: No module named 'papermill'" in output
    gone = str(machine.folder / "gone")
    assert machine.run("setup", VIRTUAL_ENV=gone, CONDA_PREFIX=good).stdout == taken


def test_an_environment_is_checked_again_only_when_it_has_changed(machine):
    good = machine.environment("good")
    packages = Path(good) / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)

    def checked() -> bool:
        assert machine.run("setup", VIRTUAL_ENV=good).stdout == f"environment: {good}/bin/python\n"
        return "accelerate" in machine.log.read_text()

    assert checked() and not checked()
    (packages / "another").touch()
    assert checked() and not checked()
    with (machine.checkout / "pyproject.toml").open("a") as file:
        file.write("# a new dependency\n")
    assert checked()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"torch/__init__.py": ""}, "torch"),
        ({"torch/__init__.py": "raise OSError('libcudart')"}, "libcudart"),
        ({"papermill/__init__.py": "import absent"}, "absent"),
        ({"sitecustomize.py": FOREIGN}, "it uses .*foreign"),
        ({"typst-0.1.dist-info/METADATA": "Name: typst\nVersion: 0.1"}, "it has typst 0.1, not >="),
        ({}, None),
    ],
)
def test_what_an_environment_has_is_imported(machine, files, reason):
    """This Python with a few packages of its own in front; `foreign` holds another dfd_utils."""
    (machine.checkout / "dfd_utils").mkdir()
    (machine.checkout / "dfd_utils" / "__init__.py").write_text("")
    foreign = machine.checkout / "foreign" / "dfd_utils" / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("")
    extra = machine.folder / "extra"
    for name, text in files.items():
        (extra / name).parent.mkdir(parents=True, exist_ok=True)
        (extra / name).write_text(text)
    python = machine.folder / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nPYTHONPATH=$PYTHONPATH:{extra} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    output = machine.run("setup", VIRTUAL_ENV=str(python.parents[1])).stdout
    if reason is None:
        assert output == f"environment: {python}\n"
    else:
        assert re.search(f"is not used: .*{reason}", output), output
        assert output.endswith(f"environment: {machine.venv}/bin/python\n")


@pytest.mark.parametrize(
    "half", ["no pip", "no python", "a python that is gone", "an empty folder"]
)
@pytest.mark.parametrize("uv", [False, True])
def test_a_half_made_environment_is_made_again(machine, half, uv):
    if uv:
        stub(machine.folder / "usr" / "bin" / "uv")
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "left").touch()
    python = machine.venv / "bin" / "python"
    if half == "no pip":
        stub(python)
    elif half == "a python that is gone":
        python.symlink_to(machine.folder / "gone")
        stamp = subprocess.run(
            ["cksum"], stdin=(machine.checkout / "pyproject.toml").open(), stdout=subprocess.PIPE
        ).stdout
        (machine.venv / ".complete").write_bytes(stamp)
    elif half == "an empty folder":
        shutil.rmtree(machine.venv / "bin")
    assert machine.run("setup").returncode == 0 and machine.installed()
    assert (machine.venv / "left").exists() == (uv and half == "no pip")  # uv needs no pip
    assert python.exists() and (uv or (machine.venv / "pip").exists())


def test_uv_installs_the_build_of_pytorch_that_fits_the_machine(machine):
    stub(machine.folder / "usr" / "bin" / "uv")
    output = machine.run("setup").stdout
    assert "about 3 GB to download and 7 GB on disk for CUDA, 0.6 and 2 GB for" in output
    assert machine.log.read_text().count(" install ") == 1
    assert "--torch-backend auto" in machine.log.read_text()


def test_without_pytorchs_index_uv_installs_pypis_build(machine):
    stub(machine.folder / "usr" / "bin" / "uv")
    (machine.folder / "usr" / "no-torch-index").touch()
    done = machine.run("setup")
    assert done.returncode == 0 and done.stdout.count("PyTorch's own index") == 1
    installations = [x for x in machine.log.read_text().splitlines() if " install " in x]
    assert ["--torch-backend" in x for x in installations] == [True, False]


@pytest.mark.parametrize("fails", [False, True])
def test_a_requested_build_of_pytorch_is_not_replaced_by_another(machine, fails):
    stub(machine.folder / "usr" / "bin" / "uv")
    if fails:
        (machine.folder / "usr" / "no-torch-index").touch()
    done = machine.run("setup", DFD_TORCH_BACKEND="cpu")
    assert done.returncode == (1 if fails else 0)
    (installation,) = [x for x in machine.log.read_text().splitlines() if " install " in x]
    assert installation.endswith("--torch-backend cpu")


def test_a_failed_installation_is_tried_again(machine):
    (machine.folder / "usr" / "no-ensurepip").touch()
    failed = machine.run("setup")
    assert failed.returncode == 2 and "apt install python3-venv" in failed.stderr
    assert machine.run("setup").returncode == 2
    (machine.folder / "usr" / "no-ensurepip").unlink()
    assert machine.run("setup").returncode == 0
    (machine.venv / ".complete").unlink()
    (machine.venv / "offline").touch()
    failed = machine.run("setup")
    assert failed.returncode == 1 and "the installation failed" in failed.stderr
    assert machine.run("setup").returncode == 1 and machine.installed()


def test_without_python_the_error_says_what_to_install(machine):
    (machine.folder / "usr" / "bin" / "python3").write_text("#!/bin/bash\nexit 1\n")
    for name in ("bash", "dirname", "readlink", "cksum", "cat", "rm"):
        (machine.folder / "usr" / "bin" / name).symlink_to(shutil.which(name))
    failed = machine.run("setup", PATH=str(machine.folder / "usr" / "bin"))
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == [
        "run_all.sh: no Python 3.11 or newer found; install one, or uv, which brings its own"
    ]


def test_links_lead_to_the_checkout(machine):
    (machine.folder / "bin").mkdir()
    (machine.folder / "bin" / "first").symlink_to("../checkout/run_all.sh")
    (machine.folder / "bin" / "report").symlink_to("first")
    output = machine.run("setup", script="bin/report").stdout
    assert output.endswith(f"environment: {machine.venv}/bin/python\n")


def test_the_run_does_not_take_a_package_from_the_working_folder(machine):
    machine.run("--no-pdf", VIRTUAL_ENV=machine.environment("good"))
    assert machine.log.read_text().endswith("python -P -m dfd_utils run --no-pdf\n")


def test_missing_test_packages_are_named(machine):
    environment = machine.environment("good")
    (Path(environment) / "no-tests").touch()
    failed = machine.run("test", VIRTUAL_ENV=environment)
    assert failed.returncode == 2
    assert failed.stderr == (
        f"run_all.sh: {environment}/bin/python lacks test packages (no pytest); "
        "in this environment: pip install -e '.[test]'\n"
    )


def imported() -> set[str]:
    """Return the modules, other than Python's, that the package and the notebooks import."""
    modules = set()
    for path in (PROJECT_ROOT / "dfd_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    for path in (PROJECT_ROOT / "notebooks").glob("*.ipynb"):
        modules |= set(re.findall(r'^\s*"(?:from|import) (\w+)', path.read_text(), re.M))
    return {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"dfd_utils"}


def test_what_is_imported_is_declared_and_the_reverse():
    def normal(name: str) -> str:
        return re.sub("[-_.]+", "-", name).lower()

    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for x in ("demo", "heif", "onnx") for line in extras[x]),
    ]
    declared = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}
    installed = packages_distributions()
    needed = {name: {*map(normal, installed.get(name, [name]))} for name in imported()}
    assert {name for name, packages in needed.items() if not packages & declared} == set()
    unused = declared - set().union(*needed.values())
    # The editor and the kernel of the notebooks, and what runs an exported model.
    assert unused <= {"jupyterlab", "ipykernel", "onnxruntime"}
