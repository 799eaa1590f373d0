"""board.md and board.json: how the recipes stand, what was chosen, and what that reached on the validation split."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from standings import changed, ranking, spread, standing
from trainings import VALIDATION, facts_in, held_out_scores, results_in

from gaeanet.config.experiment import Experiment
from gaeanet.report.describe import Subject, count_subject
from gaeanet.runs.trials import settings
from gaeanet.runtime.files import replace_text

Recipes = Mapping[str, Mapping[str, Any]]


def write_report(
    out: Path, config: Path, arguments: Sequence[str], base: Experiment, recipes: Recipes, chosen: dict[str, Any] | None
) -> None:
    """Writes both files from the trainings that have ended.

    Args:
        arguments: Further ones of `gaeanet train` that the trainings had, the images' location apart.
        chosen: What was written down before the proof; None before it.
    """
    epochs = base.hyperparameters.epochs
    scores, raw = held_out_scores(out, recipes, epochs)
    now = standing(list(recipes), scores)
    proof = results_in(out / VALIDATION, epochs) if chosen else {}
    lines = [f"# {base.name}", ""]
    if chosen and proof:
        lines += ["## On the validation split", "", *_proof_table(out, config, arguments, base, chosen, proof), ""]
    lines += [
        "## On held-out training images",
        "",
        f"Rung {now.rung} of {now.rungs}, {len(now.missing)} trainings to do. "
        + (f"Best over {now.seeds} seed{'s' * (now.seeds > 1)}: {now.leader}." if now.leader else "No result yet."),
        "",
        *ranking(recipes, scores, raw),
        "",
        "± is the standard deviation over seeds; after a difference, made seed by seed, its standard error.",
    ]
    tree = {
        "recipes": {
            name: {"changes": dict(recipes[name]), "top1": scores[name], "raw_top1": raw[name]} for name in recipes
        },
        "rung": {"number": now.rung, "of": now.rungs, "left": now.left, "missing": len(now.missing)},
        "leader": now.leader,
        "chosen": chosen,
        "validation": {"top1": {k: v[0] for k, v in proof.items()}, "raw_top1": {k: v[1] for k, v in proof.items()}},
    }
    replace_text(out / "board.md", "\n".join(lines) + "\n")
    replace_text(out / "board.json", json.dumps(tree, indent=1) + "\n")


def _proof_table(
    out: Path,
    config: Path,
    arguments: Sequence[str],
    base: Experiment,
    chosen: Mapping[str, Any],
    proof: Mapping[int, tuple[float, float]],
) -> list[str]:
    hp = base.hyperparameters.model_copy(update=dict(chosen["changes"]))
    parameters = count_subject(Subject(base.name, hp)).parameters
    facts = facts_in(out / VALIDATION)
    seconds = f"{statistics.median(fact['seconds'] for fact in facts):.0f} s" if facts else "-"
    machines = sorted({f"{fact['machine']}, {fact['side_by_side']} at a time" for fact in facts})
    sets = [word for setting in settings(chosen["changes"]) for word in ("--set", setting)]
    command = ["gaeanet", "train", config.name, "--data", "DATA", *arguments, *sets, "--set", "hyperparameters.seed=N"]
    return [
        "| recipe | epochs | top-1 % | n | raw weights % | parameters | time | machine | command |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| {chosen['recipe']} | {hp.epochs} | {spread([score for score, _ in proof.values()])} | {len(proof)} | "
        f"{spread([raw for _, raw in proof.values()])} | {parameters / 1e6:.2f} M | {seconds} | "
        f"{'; '.join(machines) or '-'} | `{shlex.join(command)}` |",
        "",
        f"Changed: {changed(chosen['changes']) or 'nothing'}. Seeds {', '.join(map(str, proof))}: "
        + ", ".join(f"{score:.2f}" for score, _ in proof.values())
        + " %. Time is a training's median, from the start of its process to its end.",
    ]
