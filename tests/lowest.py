"""`make lowest`: the suite with exactly the lowest versions that pyproject.toml allows, in an environment of its own.

Arguments go to pytest: `make lowest TESTS="tests/models -x"`. The tools of the `dev` extra are the newest that fit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-lowest"


def lower_bounds(project: dict[str, object]) -> list[str]:
    """A pin `name==version` for each package that the project itself needs, optional ones included."""
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(line for name, lines in extras.items() if name != "dev" for line in lines)]
    pins = []
    for requirement in map(Requirement, needed):
        (lowest,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
        pins.append(f"{requirement.name}=={lowest}")
    return pins


def main(arguments: list[str]) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(lower_bounds(project)))
        constraints.flush()
        install = ["install", "--quiet", "--constraint", constraints.name, "--editable", ".[dev]"]
        subprocess.run([python, "-m", "pip", *install], check=True, cwd=ROOT)
    # Old releases beside newer ones of what they need warn of much that nobody here can change.
    return subprocess.run([python, "-m", "pytest", "-W", "default", *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
