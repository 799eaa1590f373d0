"""The reference table of all keys, made from the configuration classes and written into docs/training.md.

`python -m gaeanet.config.reference docs/training.md` (`make reference`) writes it between the page's two markers.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from pathlib import Path

from pydantic.fields import FieldInfo

from gaeanet.config.augmentation import Augmentation, MixedImages
from gaeanet.config.base import Block, Length, Seeded
from gaeanet.config.data import Data
from gaeanet.config.messages import expected
from gaeanet.config.network import Network
from gaeanet.config.optimizer import Optimizer
from gaeanet.config.run import Run, Start
from gaeanet.config.schedule import Batches, Schedule
from gaeanet.config.search import Search

BEGIN, END = "<!-- reference: written by make reference -->", "<!-- end of reference -->"

BLOCKS: tuple[tuple[str, tuple[type[Block], ...]], ...] = (
    ("data", (Data,)),
    ("hyperparameters", (Network,)),
    ("hyperparameters", (Augmentation,)),
    ("hyperparameters", (MixedImages,)),
    ("hyperparameters", (Length, Schedule)),
    ("hyperparameters", (Batches,)),
    ("hyperparameters", (Optimizer,)),
    ("hyperparameters", (Seeded, Run)),
    ("hyperparameters", (Start,)),
    ("hyperparameters.search", (Search,)),
)
"""Where keys stand in the file, and the classes that define them; the last one's docstring, `Title: text`, heads."""


def table() -> str:
    """Every key in Markdown: one table a block, with a row (key, type and bounds, default, meaning) for each key."""
    lines: list[str] = []
    for prefix, classes in BLOCKS:
        title, _, text = str(inspect.getdoc(classes[-1])).splitlines()[0].partition(": ")
        lines += ["", f"### {title} (`{prefix}`)", "", f"{text[:1].upper()}{text[1:]}", ""]
        lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        for block in classes:
            for key, text in _docstrings(block).items():
                field = block.model_fields[key]
                lines.append(f"| `{key}` | {_cell(expected(field))} | {_default(field)} | {_cell(text)} |")
    return "\n".join(lines[1:]) + "\n"


def write(page: str) -> str:
    """The page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def _docstrings(block: type[Block]) -> dict[str, str]:
    """The fields that a class itself defines, in order, and the docstring under each."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(block))).body
    assert isinstance(definition, ast.ClassDef)
    docstrings = {}
    for statement, following in zip(definition.body, definition.body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr), f"{block.__name__}.{statement.target.id} has no docstring"
            docstrings[statement.target.id] = inspect.cleandoc(ast.literal_eval(following.value))
    return docstrings


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "null"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(write(path.read_text(encoding="utf-8")), encoding="utf-8")
