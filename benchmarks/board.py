"""Chooses a recipe on held-out training images, then proves it once on the validation split, within a time budget.

    python benchmarks/board.py rank   --recipe benchmarks/board-small.yaml --data /path/to/imagenette --out runs/rank
    python benchmarks/board.py choose --recipe benchmarks/imagenette-5.yaml --data ... --out runs/board-5 --minutes 10
    python benchmarks/board.py prove  --recipe benchmarks/imagenette-5.yaml --data ... --out runs/board-5 --seeds 5
    python benchmarks/board.py all    --recipe benchmarks/imagenette-5.yaml --data ... --out runs/board-5 --minutes 15

`rank` trains the recipe and each ingredient of `ingredients.yaml` over the same seeds, and shows the difference seed
by seed. `choose` is successive halving: all recipes on one seed, the best third on three, the best ninth on nine, the
unchanged recipe among them. Neither reads an image of the validation split. `prove` trains the best one over fresh
seeds and validates it there. What it proves is written down first (chosen.json; where nothing was compared, the
recipe as it is), and nothing else is chosen in that directory afterwards. `all` is `choose` and `prove`, and keeps time
for the second.

The score is that of the averaged weights where the recipe has an average, of the raw weights otherwise: never the
better of the two. board.md and board.json in `--out` are written after each training. A training that is not expected
to end within `--minutes` is left out (exit code 75). The same command goes on, after a stop too, and on another machine
with a copy of `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from board_report import write_report
from ingredients import REFERENCE, read_ingredients, recipes_of
from standings import Standing, standing
from trainings import (
    HELD_OUT,
    MORE_IMAGES,
    Clock,
    Trainer,
    held_out_scores,
    held_out_trial,
    proof_trial,
    result_of,
)

from gaeanet.config.experiment import OPERATIONAL, Experiment, load_experiment
from gaeanet.data.sources.open import open_source
from gaeanet.errors import GaeanetError, RequestError, Stopped, counted, reason
from gaeanet.runs.lock import owned
from gaeanet.runs.trials import Trial, settings, settle_on
from gaeanet.runtime.files import is_file, read_text, replace_text
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.progress import duration

FRACTION = 0.1
"""Of the training images, on which recipes are compared, unless `data.minival` says otherwise."""
RUNS_A_GPU = 4
"""Trainings side by side on a GPU by default: the steps of so small a network leave it idle in between."""
FIRST_PROOF_SEED = 1000
"""Seeds from here on have chosen nothing."""
CHOSEN = "chosen.json"

Train = Callable[[Sequence[Trial], float], int]
"""Trains the trials that there is time for, each so many times as long as those before; returns how many are left."""
HeldOut = Callable[[str, int], Trial]
"""The training of a recipe and seed on held-out images."""


def rank(names: Sequence[str], seeds: int, trial: HeldOut, train: Train) -> int:
    """Trains all recipes over so many seeds, all once before any a second time; returns how many are left."""
    _say(f"rank: {counted(len(names), 'recipe')}, {counted(seeds, 'seed')} each")
    return train([trial(name, seed) for seed in range(seeds) for name in names], 1)


def choose(look: Callable[[], Standing], trial: HeldOut, train: Train) -> int:
    """Trains rung by rung until no training is missing, or time is up; returns how many are left."""
    left = 0
    while (now := look()).missing and not left:
        facts = counted(len(now.left), "recipe"), counted(len(now.missing), "training")
        _say(f"choose: rung {now.rung} of {now.rungs}: {', '.join(facts)}")
        left = train([trial(name, seed) for name, seed in now.missing], 1)
    if now.leader:
        state = f", rung {now.rung} of {now.rungs} not complete" if now.missing else ""
        _say(f"best: {now.leader}, {now.means[now.leader]:.2f} % on {counted(now.seeds, 'seed')}{state}")
    return left


def prove(chosen: Mapping[str, Any], seeds: int, epochs: int, train: Train) -> int:
    """Trains what was chosen over fresh seeds, validated on the validation split; returns how many are left."""
    _say(f"prove: {chosen['recipe']}, {counted(seeds, 'seed')}, on the validation split")
    wanted = range(FIRST_PROOF_SEED, FIRST_PROOF_SEED + seeds)
    return train([proof_trial(chosen["changes"], seed, epochs) for seed in wanted], MORE_IMAGES)


def settled(out: Path) -> dict[str, Any] | None:
    """What was written down before its proof; None before that."""
    if not is_file(out / CHOSEN):
        return None
    try:
        chosen: dict[str, Any] = json.loads(read_text(out / CHOSEN))
        return {**chosen, "recipe": str(chosen["recipe"]), "changes": dict(chosen["changes"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{out / CHOSEN}: not what a choice writes ({reason(error)}): put its copy there") from None


def settle(out: Path, recipes: Mapping[str, Mapping[str, Any]], now: Standing) -> dict[str, Any]:
    """Writes down what was chosen and by which scores, once; without any score, the recipe as it is."""
    name = now.leader or REFERENCE
    chosen = {
        "recipe": name,
        "changes": dict(recipes[name]),
        "held_out_top1": now.means,
        "seeds": now.seeds,
        "rung": [now.rung, now.rungs],
        "missing": len(now.missing),
    }
    replace_text(out / CHOSEN, json.dumps(chosen, indent=1) + "\n")
    return chosen


def run(arguments: argparse.Namespace) -> None:
    """The command."""
    began, out, phase = time.monotonic(), arguments.out, arguments.phase
    gpus = torch.cuda.device_count()
    jobs = arguments.jobs or RUNS_A_GPU * gpus or usable_cores()
    for option, value in (("--jobs", jobs), ("--seeds", arguments.seeds), ("--minutes", arguments.minutes)):
        if value is not None and not value > 0:
            raise RequestError(f"{option} {value:g}: must be more than 0")
    base = load_experiment(arguments.recipe, arguments.set, arguments.data)
    epochs, fraction = base.hyperparameters.epochs, base.data.minival or FRACTION
    only = arguments.only.split(",") if arguments.only else None
    recipes = recipes_of(read_ingredients(arguments.ingredients), base, only)
    for changes in recipes.values():  # what a training would refuse is refused before any starts
        load_experiment(arguments.recipe, [*arguments.set, *settings(changes)], arguments.data)
    settle_on(_plan(base, fraction, open_source(base).fingerprint), out)
    for name, changes in recipes.items():
        settle_on(dict(changes), out / HELD_OUT / name)

    if phase == "choose" and (chosen := settled(out)):
        raise RequestError(f"{out}: has chosen {chosen['recipe']} ({CHOSEN}): prove that, or name another directory")

    common = [word for change in arguments.set for word in ("--set", change)]
    clock = Clock(began + 60 * arguments.minutes if arguments.minutes else math.inf)
    trainer = Trainer(arguments.recipe, [*common, "--data", arguments.data], out, jobs, gpus, clock)

    def report() -> None:
        write_report(out, arguments.recipe, common, base, recipes, settled(out))

    def train(trials: Sequence[Trial], factor: float) -> int:
        ended = 0
        for trial, seconds in trainer.train(trials, factor):
            ended += 1
            if seconds is not None:
                report()
                score, _ = result_of(out / trial.name, epochs) or (math.nan, math.nan)
                budget = f", {duration(max(0.0, clock.left))} of the budget left" if arguments.minutes else ""
                _say(f"{trial.name}: top-1 {score:.2f} %, {duration(seconds)}{budget}")
        return len(trials) - ended

    def look() -> Standing:
        return standing(list(recipes), held_out_scores(out, recipes, epochs)[0])

    def trial(name: str, seed: int) -> Trial:
        return held_out_trial(name, recipes[name], seed, epochs, fraction)

    with owned(out):
        left, seeds = 0, arguments.seeds or (3 if phase == "rank" else 5)
        if phase == "rank":
            left += rank(list(recipes), seeds, trial, train)
        if phase == "choose" or (phase == "all" and settled(out) is None):
            clock.reserved = MORE_IMAGES * math.ceil(seeds / jobs) if phase == "all" else 0
            left += choose(look, trial, train)
            clock.reserved = 0
        if phase in ("prove", "all"):
            if settled(out) is None and not clock.has_time(MORE_IMAGES):  # so that more may still be chosen
                left += seeds
            else:
                left += prove(settled(out) or settle(out, recipes, look()), seeds, epochs, train)
        report()
    _say(f"wrote {out / 'board.md'} after {duration(time.monotonic() - began)}")
    if left:
        raise Stopped(f"{counted(left, 'training')} left out for lack of time: the same command goes on")


def _plan(base: Experiment, fraction: float, images: str) -> dict[str, Any]:
    """What makes a directory's trainings comparable; nothing in it is about a machine.

    Args:
        images: The fingerprint of their names, which copies in other places and sizes have too.
    """
    hp = base.hyperparameters.spelled_out()
    values = {key: value for key, value in hp.items() if key not in OPERATIONAL and key != "seed"}
    return {"recipe": values, "minival": fraction, "images": images}


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["rank", "choose", "prove", "all"])
    parser.add_argument("--recipe", type=Path, required=True, help="the experiment file")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True, help="where trainings and results are kept")
    parser.add_argument("--ingredients", type=Path, default=Path(__file__).parent / "ingredients.yaml")
    parser.add_argument("--only", help="these ingredients, separated by commas")
    parser.add_argument("--seeds", type=int, help="of each recipe in rank (default: 3), of the proof (default: 5)")
    parser.add_argument("--minutes", type=float, help="starts nothing that is not expected to end by then")
    parser.add_argument("--jobs", type=int, help=f"trainings at a time (default: {RUNS_A_GPU} a GPU, or one a core)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the experiment file")
    try:
        run(parser.parse_args())
    except GaeanetError as error:
        print(f"board: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
