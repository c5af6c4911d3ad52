"""What does this project depend on, under which licences, and with which known vulnerabilities?

    python -m benchmarks.supply [--licences-only]

Lists every installed distribution that `dfd-utils` and its extras need, directly or not, and its
licence. Then pip-audit (`pip install pip-audit`) asks PyPI for known vulnerabilities of these
versions. Exits with 1 if a licence is not known to be permissive, 2 if pip-audit finds something or
cannot ask.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PERMISSIVE = re.compile(
    r"\b(MIT|MIT-CMU|BSD|Apache|ISC|PSF|Python Software Foundation|HPND|Zlib|0BSD|CC0|Unlicense)",
    re.IGNORECASE,
)
# Allowed by name: a copyleft that ends at the file or the library, or terms of their own.
ALLOWED = {
    "certifi": "MPL 2.0: its files alone",
    "tqdm": "MPL 2.0 and MIT: its files alone",
    "fqdn": "MPL 2.0: its files alone",
    "pypandoc-binary": "MIT; carries pandoc, GPL 2 or later, a program that runs beside this one",
    "lightning-utilities": "Apache 2.0",
    "axe-playwright-python": "MIT; carries axe-core, MPL 2.0: its files alone; for tests",
}
VENDOR = re.compile(r"^(nvidia-|cuda-)")  # CUDA's libraries: NVIDIA's terms, free to use


def main() -> int:
    """Print the table of licences and the findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--licences-only", action="store_true")
    options = parser.parse_args()
    found, unknown = closure("dfd-utils"), []
    print("| distribution | version | licence |\n|---|---|---|")
    for name in sorted(found):
        licence = licence_of(found[name])
        if VENDOR.match(name):
            licence = "NVIDIA's terms; for CUDA alone"
        elif name in ALLOWED:
            licence = ALLOWED[name]
        elif not PERMISSIVE.search(licence):
            unknown.append(name)
        print(f"| {name} | {found[name].version} | {licence} |")
    print(f"{len(found)} distributions; not known to be permissive: {', '.join(unknown) or 'none'}")
    code = int(bool(unknown))
    if not options.licences_only:
        code = find_vulnerabilities(found) or code
    return code


def closure(root: str) -> dict[str, Distribution]:
    """Return the installed distributions that `root` needs, with all of its extras."""
    found, waiting = {}, [(root, frozenset(distribution(root).metadata.get_all("Provides-Extra")))]
    while waiting:
        name, extras = waiting.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # an extra that is not installed, or of another platform
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            needed = normalise(requirement.name)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": e}) for e in ("", *extras)):
                continue
            if needed not in found or requirement.extras:
                if needed == root:
                    continue
                waiting.append((needed, frozenset(requirement.extras)))
    del found[root]
    return found


def normalise(name: str) -> str:
    """Return a distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(found: Distribution) -> str:
    """Return a licence: the expression, the classifiers, or the first line of its text."""
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    named = ", ".join(c.rpartition("::")[2].strip() for c in classifiers)
    if PERMISSIVE.search(named):
        return named
    text = (metadata.get("License") or named or "unknown").strip().replace("|", "/")
    if text.lower() == "unknown":
        files = [f for f in found.files or [] if f.name.upper().startswith("LICEN")]
        text = " ".join(files[0].locate().read_text().split()[:4]) if files else text
    return text.splitlines()[0][:60]


def find_vulnerabilities(found: dict[str, Distribution]) -> int:
    """Run pip-audit on the exact versions; return 2 if it finds something or cannot ask."""
    if importlib.util.find_spec("pip_audit") is None:
        print("pip-audit is not installed: pip install pip-audit", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "requirements.txt"
        # Without the build's own part of a version ("+cpu"), which PyPI does not know.
        lines = [f"{name}=={d.version.partition('+')[0]}" for name, d in sorted(found.items())]
        pins.write_text("\n".join(lines))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--strict"]
        done = subprocess.run([*command, "--requirement", pins])
    return 2 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
