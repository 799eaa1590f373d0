"""What a network is said to be and to cost: counts to the unit, words for every edge, differences that are true."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Result
from torch.utils.flop_counter import FlopCounterMode

from gaeanet.artifacts import checkpoint
from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.zoo import ZOO
from gaeanet.models.counting import Counts, count
from gaeanet.models.network import CellNetwork
from gaeanet.report.describe import count_subject, differences, explain, read_subject

Run = Callable[..., Result]
Write = Callable[..., Path]


def network(**options: Any) -> CellNetwork:
    return CellNetwork(**{"device": torch.device("meta"), **options})


@pytest.mark.parametrize(
    ("options", "parameters", "multiply_adds"),
    [
        ({"genotype": "gaea-imagenet"}, 5_620_864, 624.04e6),
        ({"genotype": "gaea-imagenet", "activation": "swish", "squeeze_excite": True}, 5_725_828, 624.14e6),
        ({"genotype": "pc-darts-imagenet"}, 5_342_464, 581.63e6),
        ({"genotype": "darts-v2"}, 4_718_752, 529.91e6),
        ({"genotype": "darts-v1"}, 4_510_432, 505.86e6),
        ({"genotype": "p-darts-cifar10"}, 4_944_352, 542.82e6),
    ],
)
def test_known_networks(options: dict[str, Any], parameters: int, multiply_adds: float) -> None:
    counts = count(network(auxiliary=True, **options), 224)
    assert counts.parameters == parameters
    assert counts.multiply_adds == pytest.approx(multiply_adds, rel=1e-4)


def test_the_parts_of_the_gaea_network() -> None:
    parts = count(network(), 224).parts
    assert parts["pointwise"] == pytest.approx(507.6e6, rel=1e-4)
    assert parts["depthwise"] == pytest.approx(58.8e6, rel=1e-3)
    assert parts["stem"] == pytest.approx(56.9e6, rel=1e-4)
    assert parts["classifier"] == 768 * 1000


@pytest.mark.parametrize("stem", [{}, {"stem_stride": 1}, {"stem": "cifar"}])
@pytest.mark.parametrize("name", ["gaea-imagenet", "nasnet-a", "amoebanet-a"])
def test_counts_are_half_of_what_torch_counts(name: str, stem: dict[str, Any]) -> None:
    options = {"genotype": name, "init_channels": 8, "layers": 4, "num_classes": 10, **stem}
    for device, squeeze_excite in (("cpu", True), ("meta", False)):
        built = network(**options, squeeze_excite=squeeze_excite, device=torch.device(device)).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            built(torch.zeros(1, 3, 65, 65, device=device))
        assert 2 * count(built, 65).multiply_adds == counter.get_total_flops()


def test_field_report_7_counts_agree_with_a_hand_count_and_leave_out_the_tower() -> None:
    # Two cells of one node, both reductions (at 2 // 3 = 0 and 4 // 3 = 1): 64 -> stem 8 -> 4 -> 2 pixels.
    cell = (Edge("sep_conv_3x3", 0), Edge("skip_connect", 1))
    genotype = Genotype(cell, (2,), cell, (2,))
    options = {"genotype": genotype, "init_channels": 4, "layers": 2, "num_classes": 10}
    stem = 32**2 * 2 * 27 + 16**2 * 4 * 18 + 8**2 * 4 * 36
    first_pointwise = (
        8**2 * 8 * 4  # older input, after the stem: 16 pixels halved by two 1x1 convolutions, 4 to 8 channels
        + 8**2 * 8 * 4  # newer input
        + 2 * 4**2 * 8 * 8  # separable convolution, stride 2
        + 4**2 * 8 * 8  # skip connection with stride 2
    )
    second_pointwise = 4**2 * 16 * 4 + 4**2 * 16 * 8 + 2 * 2**2 * 16 * 16 + 2**2 * 16 * 16
    depthwise = 2 * 4**2 * 8 * 9 + 2 * 2**2 * 16 * 9
    parts = {
        "stem": stem,
        "pointwise": first_pointwise + second_pointwise,
        "depthwise": depthwise,
        "classifier": 16 * 10,
    }
    convolutions = 54 + 72 + 144 + (32 + 32 + 128 + 64) + (64 + 128 + 512 + 256) + 2 * 8 * 9 + 2 * 16 * 9
    norms = 2 * (2 + 4 + 4 + 8 * 5 + 16 * 5)
    parameters = convolutions + norms + 16 * 10 + 10
    for device in ("cpu", "meta"):
        plain = count(network(**options, device=torch.device(device)), 64)
        towered = count(network(**options, device=torch.device(device), auxiliary=True), 64)
        assert plain == Counts(parameters, sum(parts.values()), parts, 0, 0)
        assert (towered.parameters, towered.multiply_adds, towered.parts) == (parameters, sum(parts.values()), parts)
        assert towered.tower_parameters == 16 * 128 + 2 * 128 + 4 * 128 * 768 + 2 * 768 + 768 * 10 + 10
        assert towered.tower_multiply_adds == 2**2 * 16 * 128 + 4 * 128 * 768 + 768 * 10


def test_field_report_7_the_command_says_what_it_counts(gaeanet: Run, experiment_file: Write) -> None:
    plain, towered = (
        json.loads(gaeanet("describe", experiment_file(auxiliary=auxiliary), "--json").out)
        for auxiliary in (False, True)
    )
    assert towered.pop("auxiliary_tower").pop("in_training") is True
    assert plain.pop("auxiliary_tower").pop("in_training") is False
    assert plain == towered
    text = gaeanet("describe", "gaea-imagenet").out
    assert "parameters       5,620,864, without the tower" in text
    assert "624.04 M at 224 x 224, without the tower" in text
    assert "multiply-adds of convolutions and linear layers" in text
    assert f"(fingerprint {ZOO['gaea-imagenet'].genotype.fingerprint})" in text
    assert text.rstrip().endswith(ZOO["gaea-imagenet"].genotype.to_text())
    assert "top-1 24.0 %, top-5 7.3 %; < 600 M multiply-adds" in text


def test_counting_leaves_the_network_as_it_was() -> None:
    built = network(device=torch.device("cpu"), init_channels=4, layers=3, auxiliary=True, num_classes=3).train()
    built.classifier.eval()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    count(built, 32)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert built.training
    assert not built.classifier.training
    assert not any(module._forward_hooks for module in built.modules())


@pytest.mark.parametrize("name", ZOO)
def test_every_edge_is_explained(name: str) -> None:
    genotype = ZOO[name].genotype
    text = explain(genotype)
    normal, reduction = text.split("\nReduction cell")
    for part, cell in ((normal, genotype.normal), (reduction, genotype.reduce)):
        for operation, source in cell:
            assert f"    {operation} of {'state' if source < 2 else 'node'} {source}" in part
            assert f"\n  {operation} " in text.split("Operations:")[1]
    assert f"output = concat of {', '.join(map(str, genotype.normal_concat))}" in normal
    assert f"output = concat of {', '.join(map(str, genotype.reduce_concat))}" in reduction


def test_every_way_to_name_a_network(gaeanet: Run, experiment_file: Write, tmp_path: Path) -> None:
    cell = ZOO["darts-v2"].genotype
    (tmp_path / "cell.json").write_text(cell.to_json())
    (tmp_path / "cell.yaml").write_text(cell.to_yaml())
    (tmp_path / "log.txt").write_text(f"step 3\n{cell.to_text()}\n")
    references = ["darts-v2", "cell.json", "cell.yaml", "log.txt", cell.to_text(), f"DARTS = {cell.to_text()}"]
    subjects = [read_subject(reference) for reference in references]
    assert all(subject == subjects[0] for subject in subjects)
    assert (subjects[0].name, subjects[0].genotype) == ("darts-v2", cell)
    assert count_subject(subjects[0]).parameters == 4_718_752

    config = experiment_file(genotype="darts-v2", image_size=64, layers=2)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_bytes(config.read_bytes())
    state = {"hyperparameters": read_subject(str(config)).hyperparameters.model_dump()}
    saved = checkpoint.save(run_dir / "checkpoints", 7, {"model": {"x": torch.zeros(1)}}, state)
    found = [json.loads(gaeanet("describe", place, "--json").out) for place in (config, run_dir, saved)]
    assert all(facts == found[0] for facts in found)
    assert (found[0]["name"], found[0]["image_size"], found[0]["network"]["layers"]) == ("darts-v2", 64, 2)
    assert json.loads(gaeanet("describe", saved, "--json", "--image-size", "96").out)["image_size"] == 96


def test_data_still_to_be_filled_in_does_not_matter(gaeanet: Run, experiment_file: Write) -> None:
    config = experiment_file(data={"bucket_name": "<your-bucket>"})
    assert gaeanet("describe", config).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["darts-v3"], "neither a file nor a known cell or recipe; did you mean darts-v"),
        (["__import__('os').getcwd()"], "neither a file nor a known cell"),
        (["Genotype(normal=[('sep_conv_3x3', 2)])"], "genotype: no normal_concat"),
        (["darts-v1", "--image-size", "31"], "--image-size 31: the network needs 32 pixels or more"),
        (["darts-v1", "--image-size", "big"], "must be a whole number, is 'big'"),
        (["darts-v1", "darts-v2", "nasnet-a"], "describe takes one network or two to compare, not 3"),
        (["darts-v1", "darts-v2", "--draw", "x.svg"], "--draw draws one network's cells"),
        (["darts-v1", "--draw", "file/x.svg"], "file/x.svg: cannot write the picture: "),
        (["file"], "file: expected a mapping"),
        (["."], ".: neither a run directory (config.yaml is missing) nor a checkpoint (no manifest.json)"),
        (["broken"], "not a gaeanet checkpoint, or its manifest.json is damaged"),
        (["x" * 5000], "cannot be read: file name too long"),  # whatever pathlib makes of it: field report 97
    ],
)
def test_every_refusal_is_one_line(gaeanet: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file").write_text("nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    result = gaeanet("describe", *arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_two_cells_are_compared_node_by_node(gaeanet: Run) -> None:
    text = gaeanet("describe", "darts-v1", "darts-v2").out
    assert "4,510,432" in text
    assert "4,718,752" in text
    assert (
        "  node 5        - sep_conv_3x3(0), skip_connect(2)\n  node 5        + skip_connect(0), dil_conv_3x3(2)" in text
    )
    facts = json.loads(gaeanet("describe", "darts-v1", "darts-v2", "--json").out)
    assert facts["a"]["name"] == "darts-v1"
    assert {"cell": "reduce", "node": 3, "only_a": [["max_pool_3x3", 0]], "only_b": [["max_pool_3x3", 1]]} in facts[
        "differences"
    ]


@pytest.mark.parametrize("name", ZOO)
def test_differences_turn_one_cell_into_the_other(name: str) -> None:
    for other, published in ZOO.items():
        a, b = ZOO[name].genotype, published.genotype
        found = differences(a, b)
        assert bool(found) == (name != other)
        changed = {(entry["cell"], entry["node"]): entry for entry in found}
        for cell in ("normal", "reduce"):
            for node in range(2, max(len(getattr(g, cell)) for g in (a, b)) // 2 + 2):
                edges = [list(edge) for edge in getattr(a, cell)[2 * node - 4 : 2 * node - 2]]
                entry = changed.get((cell, node), {"only_a": [], "only_b": []})
                for edge in entry["only_a"]:
                    edges.remove(edge)
                edges += entry["only_b"]
                assert sorted(edges) == sorted(list(e) for e in getattr(b, cell)[2 * node - 4 : 2 * node - 2])


def test_the_order_of_a_nodes_edges_is_no_difference() -> None:
    a = ZOO["darts-v1"].genotype
    turned = tuple(edge for k in range(0, 8, 2) for edge in (a.normal[k + 1], a.normal[k]))
    assert differences(a, Genotype(turned, (5, 4, 3, 2), a.reduce, a.reduce_concat)) == []


def test_words_differences_and_drawings_come_without_torch(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from gaeanet.cli.main import main\n"
        "from gaeanet.report.describe import count_subject, differences, explain, read_subject\n"
        "assert main(['describe', 'darts-v1', '--draw', sys.argv[1]]) == 0\n"
        "a, b = (read_subject(name).genotype for name in ('darts-v1', 'darts-v2'))\n"
        "assert explain(a) and differences(a, b)\n"
        "assert 'torch' not in sys.modules\n"
    )
    drawing = tmp_path / "cell.svg"
    subprocess.run([sys.executable, "-c", code, str(drawing)], check=True, cwd=pytestconfig.rootpath)
    assert drawing.read_text().startswith("<svg")


def test_a_reader_that_has_had_enough_is_no_error(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    command = f"{sys.executable} -m gaeanet.cli describe darts-v1 --draw {tmp_path}/cell.svg | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=pytestconfig.rootpath)
    assert done.stderr == ""
