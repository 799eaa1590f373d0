"""What a network is and costs, as text and as JSON, and how two cells differ.

Only counting needs torch, which is imported then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.artifacts.directory import CHECKPOINTS, CONFIG, GENOTYPE, MANIFEST
from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.operations import OPERATIONS
from gaeanet.cells.read import read_genotype
from gaeanet.cells.zoo import ZOO, name_of
from gaeanet.config.experiment import Experiment, Hyperparameters, experiment_from, load_experiment
from gaeanet.config.recipes import is_bare, recipe_names
from gaeanet.errors import RequestError, counted, did_you_mean
from gaeanet.runtime.files import exists, is_directory, is_file, read_text
from gaeanet.runtime.imports import importing
from gaeanet.runtime.tables import table_lines
from gaeanet.runtime.yaml import parse

if TYPE_CHECKING:
    from gaeanet.models.counting import Counts

_INPUTS = ("state 0, the cell before the previous one", "state 1, the previous cell")
_FIGURES = {"imagenet_top1": "ImageNet top-1", "imagenet_top5": "top-5", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Subject:
    """What is described: a cell, and the network built of it.

    Attributes:
        name: The cell's name in the zoo, or where it was read.
        hyperparameters: Of the experiment or checkpoint, or those of the papers' network for a bare genotype.
    """

    name: str
    hyperparameters: Hyperparameters

    @property
    def genotype(self) -> Genotype:
        return self.hyperparameters.cell

    @property
    def known_as(self) -> str | None:
        """The cell's name in the zoo, whatever it was called where it was read."""
        return name_of(self.genotype)


def read_subject(reference: str) -> Subject:
    """Finds what `reference` names.

    Args:
        reference: A zoo name, a genotype file, a `Genotype(...)` text, an experiment file, a recipe, a run directory
            or a checkpoint directory.

    Raises:
        RequestError: There is no such thing, or what is there cannot be read.
    """
    path = Path(reference)
    try:
        kind = "directory" if is_directory(path) else "file" if is_file(path) else ""
    except (OSError, ValueError):  # a text too long to be a path
        kind = ""
    if not kind and reference in recipe_names():
        return _subject(reference, _hyperparameters(path))
    if reference in ZOO or not kind:
        genotype = _known_cell(reference)
    elif metadata := _of_trained(path):
        tree = {"hyperparameters": metadata["state"]["hyperparameters"]}
        return _subject(reference, experiment_from(tree, reference).hyperparameters)
    elif kind == "directory":
        return _subject(reference, _from_directory(path))
    elif _is_experiment(path):
        return _subject(reference, _hyperparameters(path))
    else:
        genotype = read_genotype(reference)
    return _subject(
        reference if kind else "genotype", Hyperparameters(genotype=genotype.to_dict(), activation="relu", do_SE=False)
    )


def _known_cell(reference: str) -> Genotype:
    """A cell of the zoo or a `Genotype(...)` text; a name that is neither may be a misspelt recipe as well."""
    if reference not in ZOO and is_bare(reference):
        hint = did_you_mean(reference, [*ZOO, *recipe_names()])
        raise RequestError(f"{reference!r}: neither a file nor a known cell or recipe; {hint}")
    return read_genotype(reference)


def _subject(reference: str, hyperparameters: Hyperparameters) -> Subject:
    return Subject(Subject("", hyperparameters).known_as or Path(reference).stem, hyperparameters)


def _hyperparameters(config: Path) -> Hyperparameters:
    """Those of an experiment file. Its data may be a location still to be filled in: no network depends on it."""
    hp = load_experiment(config, ["data.bucket_name=null", "data.location=null"]).hyperparameters
    if hp.search is not None:
        raise RequestError(f"{config}: a search, which has no cell yet: describe the {GENOTYPE} that it leaves")
    return hp


def _from_directory(path: Path) -> Hyperparameters:
    """The hyperparameters that a run or a checkpoint was made with."""
    if is_file(path / CONFIG):
        return _hyperparameters(path / CONFIG)
    candidates = (path, path / CHECKPOINTS / "best", path / CHECKPOINTS / "latest", path / "best", path / "latest")
    checkpoint = next((checkpoint for checkpoint in candidates if is_file(checkpoint / MANIFEST)), None)
    if checkpoint is None:
        raise RequestError(f"{path}: neither a run directory ({CONFIG} is missing) nor a checkpoint (no manifest.json)")
    from gaeanet.artifacts.checkpoint import read_manifest

    state = read_manifest(checkpoint)["state"]
    if not isinstance(state, dict) or not isinstance(state.get("hyperparameters"), dict):
        raise RequestError(f"{checkpoint}: its manifest.json holds no hyperparameters")
    experiment: Experiment = experiment_from({"hyperparameters": state["hyperparameters"]}, str(checkpoint))
    return experiment.hyperparameters


def _of_trained(path: Path) -> dict[str, Any] | None:
    """The metadata of an export, or of a checkpoint that is there; None for anything else."""
    from gaeanet.artifacts.metadata import read_metadata

    if not exists(path):
        return None
    marks = (MANIFEST, "config.json", "model.onnx", "model.pt2", f"{CHECKPOINTS}/best", f"{CHECKPOINTS}/latest")
    if path.suffix not in (".onnx", ".pt2") and not any(exists(path / mark) for mark in marks):
        return None
    metadata = read_metadata(path)
    if metadata is None:
        raise RequestError(f"{path}: has no metadata of gaeanet: another program wrote it")
    return metadata


def _metadata(reference: str) -> dict[str, Any] | None:
    """The same for what a command line names: a cell's name or text is no file."""
    return None if reference in ZOO or len(reference) > 1000 else _of_trained(Path(reference))


def _is_experiment(path: Path) -> bool:
    try:
        tree = parse(read_text(path), str(path))
    except (OSError, UnicodeDecodeError, RequestError):
        return False
    return isinstance(tree, dict) and not {"hyperparameters", "data"}.isdisjoint(tree)


def count_subject(subject: Subject, image_size: int | None = None) -> Counts:
    """Counts the network at `image_size`, its own by default; the tower is counted apart even where it is switched off.

    Raises:
        RequestError: The image is too small.
    """
    hp = subject.hyperparameters
    size = hp.image_size if image_size is None else image_size
    if size < 32:
        raise RequestError(f"--image-size {size}: the network needs 32 pixels or more")
    with importing(torch=True):
        import torch

        from gaeanet.models.counting import count
        from gaeanet.models.network import CellNetwork

    network = CellNetwork(
        hp.num_classes,
        **hp.architecture,
        auxiliary=True,
        auxiliary_second_norm=hp.auxiliary_second_norm,
        device=torch.device("meta"),
    )
    return count(network, size)


def explain(genotype: Genotype, layers: int = 14) -> str:
    """Both cells edge by edge, as text."""
    used = sorted({edge.operation for edge in (*genotype.normal, *genotype.reduce)})
    return "\n\n".join(
        [
            "How to read a cell: states 0 and 1 are its inputs. Each node after them (2, 3, ...) is the sum of two\n"
            "operations; the number (index) beside an operation is the state that it reads. concat names the nodes\n"
            "whose channels, side by side, are the cell's output; each node is as wide as the cell.",
            "\n".join(_explained("normal", genotype.normal, genotype.normal_concat, layers)),
            "\n".join(_explained("reduction", genotype.reduce, genotype.reduce_concat, layers)),
            "\n".join(
                ["Operations:", *(f"  {operation:<13} {OPERATIONS[operation].description}" for operation in used)]
            ),
        ]
    )


def _explained(name: str, edges: tuple[Edge, ...], concat: tuple[int, ...], layers: int) -> Iterable[str]:
    halved = name == "reduction"
    indices = sorted({layers // 3, 2 * layers // 3})
    if halved:
        where = f"cell{'s' * (len(indices) > 1)} {' and '.join(map(str, indices))} of {layers}, counted from 0"
        yield f"Reduction cell ({where}): halves the map, doubles the width"
    else:
        yield f"Normal cell ({layers - len(indices)} of {layers}): keeps the size of the map"
    yield from (f"  input: {text}" for text in _INPUTS)
    for node in range(2, len(edges) // 2 + 2):
        yield f"  node {node} = {_sum(edges[2 * node - 4 : 2 * node - 2])}"
        for operation, source in edges[2 * node - 4 : 2 * node - 2]:
            read = _INPUTS[source] if source < 2 else f"node {source}"
            stride = ", with stride 2, which halves the map" if halved and source < 2 else ""
            yield f"    {operation} of {read}{stride}"
    yield f"  output = concat of {', '.join(map(str, concat))}: {len(concat)} times the cell's width in channels"


def _sum(edges: Iterable[Edge]) -> str:
    return " + ".join(f"{operation}({source})" for operation, source in edges)


def differences(a: Genotype, b: Genotype) -> list[dict[str, Any]]:
    """The nodes and outputs in which two genotypes differ.

    The order of a node's two edges, and of the nodes in concat, does not count. Nodes are compared by number.

    Returns:
        A mapping for each: `cell` (normal or reduce), `node` (a number or "concat"), and what `only_a` and `only_b`
        have there: edges `[operation, input]`, or states.
    """
    entries: list[dict[str, Any]] = []
    for cell in ("normal", "reduce"):
        sides: list[tuple[Edge, ...]] = [getattr(genotype, cell) for genotype in (a, b)]
        for node in range(2, max(map(len, sides)) // 2 + 2):
            edges_a, edges_b = (Counter(edges[2 * node - 4 : 2 * node - 2]) for edges in sides)
            if edges_a != edges_b:
                only_a, only_b = (
                    [list(edge) for edge in rest.elements()] for rest in (edges_a - edges_b, edges_b - edges_a)
                )
                entries.append({"cell": cell, "node": node, "only_a": only_a, "only_b": only_b})
        concat_a, concat_b = (set(getattr(genotype, f"{cell}_concat")) for genotype in (a, b))
        if concat_a != concat_b:
            only_a, only_b = sorted(concat_a - concat_b), sorted(concat_b - concat_a)
            entries.append({"cell": cell, "node": "concat", "only_a": only_a, "only_b": only_b})
    return entries


def to_dict(subject: Subject, image_size: int | None = None) -> dict[str, Any]:
    """Everything about one network in plain values."""
    from gaeanet.models.counting import COUNTED

    hp, counts = subject.hyperparameters, count_subject(subject, image_size)
    known_as = subject.known_as
    published = None
    if known_as:
        published = {
            "source": ZOO[known_as].source,
            "errors_percent": ZOO[known_as].errors,
            "multiply_adds": ZOO[known_as].multiply_adds,
        }
    return {
        "name": subject.name,
        "fingerprint": subject.genotype.fingerprint,
        "network": {
            "init_channels": hp.init_channels,
            "layers": hp.layers,
            "activation": hp.activation,
            "do_SE": hp.do_SE,
            "stem": hp.stem,
            "stem_stride": hp.stem_stride,
            "num_classes": hp.num_classes,
        },
        "image_size": hp.image_size if image_size is None else image_size,
        "parameters": counts.parameters,
        "multiply_adds": counts.multiply_adds,
        "multiply_adds_by_part": counts.parts,
        "counted": COUNTED,
        "auxiliary_tower": {
            "in_training": hp.auxiliary and hp.auxiliary_weight > 0,
            "parameters": counts.tower_parameters,
            "multiply_adds": counts.tower_multiply_adds,
        },
        "published": published,
        "genotype": subject.genotype.to_dict(),
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary of `to_dict`'s values, a name and a value a row."""
    network, tower, published = facts["network"], facts["auxiliary_tower"], facts["published"]
    rows = [
        ("cell", f"{facts['name']} (fingerprint {facts['fingerprint']})"),
        (
            "network",
            f"{counted(network['layers'], 'cell')}, {network['init_channels']} channels, {network['activation']}"
            f"{', squeeze-excite' * network['do_SE']}, {network['stem']} stem"
            f"{' of stride 1' * (network['stem_stride'] == 1)}, {network['num_classes']} classes",
        ),
        ("parameters", f"{facts['parameters']:,}, without the tower"),
        (
            "multiply-adds",
            f"{facts['multiply_adds'] / 1e6:.2f} M at {facts['image_size']} x {facts['image_size']}, without the tower",
        ),
    ]
    parts = (f"{name.replace('_', '-')} {value / 1e6:.1f} M" for name, value in facts["multiply_adds_by_part"].items())
    rows.append(("", ", ".join(parts)))
    use = "used in training" if tower["in_training"] else "switched off"
    rows.append(
        (
            "auxiliary tower",
            f"{tower['parameters']:,} parameters, {tower['multiply_adds'] / 1e6:.2f} M, counted apart ({use})",
        )
    )
    if published:
        errors = ", ".join(f"{_FIGURES[key]} {value} %" for key, value in published["errors_percent"].items())
        figure = f"{published['multiply_adds']} multiply-adds (the authors' counter)" * bool(published["multiply_adds"])
        rows.append(("published", "; ".join(filter(None, [f"error {errors}" * bool(errors), figure])) or "no figures"))
        rows.append(("source", published["source"]))
    return rows


def describe(reference: str, image_size: int | None = None, as_json: bool = False) -> str:
    """One network: summary and cells explained, or the same as JSON."""
    subject = read_subject(reference)
    facts = to_dict(subject, image_size)
    if as_json:
        if metadata := _metadata(reference):
            facts |= {"lineage": metadata["state"]["lineage"]} if metadata["state"].get("lineage") else {}
        return json.dumps(facts, indent=2)
    rows = [f"{name:<16} {value}".rstrip() for name, value in _rows(facts)]
    rows.append(f"{'counted':<16} {facts['counted']}")
    genotype = subject.genotype
    text = [*rows, "", explain(genotype, subject.hyperparameters.layers), "", genotype.to_text()]
    if metadata := _metadata(reference):
        from gaeanet.artifacts.lineage import chain

        text += ["", "Where it came from:", *chain(metadata)]
    return "\n".join(text)


def compare(reference_a: str, reference_b: str, image_size: int | None = None, as_json: bool = False) -> str:
    """Two networks: both summaries side by side and what differs in their cells, or the same as JSON."""
    a, b = read_subject(reference_a), read_subject(reference_b)
    facts_a, facts_b = to_dict(a, image_size), to_dict(b, image_size)
    entries = differences(a.genotype, b.genotype)
    if as_json:
        return json.dumps({"a": facts_a, "b": facts_b, "differences": entries}, indent=2)
    return "\n".join(
        [*_side_by_side(facts_a, facts_b), "", *_differences(entries), "", f"counted: {facts_a['counted']}"]
    )


def _side_by_side(facts_a: dict[str, Any], facts_b: dict[str, Any]) -> Iterable[str]:
    columns = [
        [
            facts["name"],
            facts["fingerprint"],
            str(facts["network"]["layers"]),
            str(facts["network"]["init_channels"]),
            facts["network"]["activation"],
            "yes" if facts["network"]["do_SE"] else "no",
            f"{facts['parameters']:,}",
            f"{facts['multiply_adds'] / 1e6:.2f} M at {facts['image_size']} px",
            *_published(facts["published"]),
        ]
        for facts in (facts_a, facts_b)
    ]
    names = ["", "fingerprint", "cells", "channels", "activation", "squeeze-excite", "parameters", "multiply-adds"]
    names += ["published error", "published multiply-adds"]
    return table_lines(["", columns[0][0], columns[1][0]], list(zip(names, *columns))[1:])


def _published(published: dict[str, Any] | None) -> tuple[str, str]:
    if not published:
        return "-", "-"
    errors = ", ".join(f"{_FIGURES[key]} {value} %" for key, value in published["errors_percent"].items())
    return errors or "-", published["multiply_adds"] or "-"


def _differences(entries: list[dict[str, Any]]) -> Iterable[str]:
    if not entries:
        yield "The cells are the same (the order of a node's two edges does not count)."
        return
    yield "What differs, node by node (- the first only, + the second only):"
    for cell, name in (("normal", "normal cell"), ("reduce", "reduction cell")):
        of_cell = [entry for entry in entries if entry["cell"] == cell]
        yield f"{name}:" if of_cell else f"{name}: the same"
        for entry in entries:
            where = "output concat" if entry["node"] == "concat" else f"node {entry['node']}"
            for sign, side in (("-", "only_a"), ("+", "only_b")):
                if entry[side]:
                    things = map(str, entry[side]) if entry["node"] == "concat" else map(_edge, entry[side])
                    yield f"  {where:<14}{sign} {', '.join(things)}"


def _edge(edge: list[Any]) -> str:
    return f"{edge[0]}({edge[1]})"
