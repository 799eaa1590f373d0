"""The experiment file: what is accepted, and one line naming key and remedy for what is not."""

from pathlib import Path

import pytest
import yaml

from gaeanet.config.experiment import experiment_from, load_experiment
from gaeanet.errors import RequestError

# The blocks of Determined's 2020 example (eval/distributed.yaml and eval/const.yaml), values as they stood.
BLOCKS_2020 = """
data:
  bucket_name: some-bucket
  num_workers_train: 16
  num_workers_val: 2
  streaming: true
  data_download_dir: null
hyperparameters:
  num_classes: 1000
  learning_rate: 0.5
  momentum: 0.9
  weight_decay: 3e-5
  drop_path_prob: 0.0
  drop_prob: 0.0
  label_smoothing_rate: 0.1
  ema_decay: 0.999
  clip_gradients_l2_norm: 5
  lr_scheduler: {scheduler}
  {length}
  warmup_epochs: 5
  lr_gamma: 0.96
  lr_decay_every: 3
  global_batch_size: 1024
  init_channels: 48
  layers: 14
  auxiliary: true
  auxiliary_weight: 0.4
  randaugment: {randaugment}
  cutout: true
  cutout_length: 16
  do_SE: false
  activation: relu
"""


@pytest.mark.parametrize(
    ("scheduler", "length", "epochs"),
    [
        ("linear", "lr_epochs: 250", 250),
        ("efficientnet", "lr_epochs: 300\n  cosine_annealing_epochs: 200", 300),
        ("cosine", "lr_epochs: 300\n  cosine_annealing_epochs: 200", 200),
        ("cosine", "lr_epochs: 120", 120),
    ],
)
@pytest.mark.parametrize("randaugment", ["true", "false"])
def test_the_2020_blocks_are_accepted_as_they_stand(
    tmp_path: Path, scheduler: str, length: str, epochs: int, randaugment: str
) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(BLOCKS_2020.format(scheduler=scheduler, length=length, randaugment=randaugment))
    experiment = load_experiment(path)
    hp = experiment.hyperparameters
    assert (hp.epochs, hp.weight_decay, hp.lr_gamma, hp.lr_decay_every) == (epochs, 3e-5, 0.96, 3)
    assert (hp.auxiliary, hp.do_SE, hp.activation, hp.cutout) == (True, False, "relu", True)
    assert hp.randaugment is (randaugment == "true")
    assert experiment.data.resolved_location == "gs://some-bucket/imagenet"


BAD = [
    ("hyperparameters: {epoch: 3}", "hyperparameters.epoch: unknown key; did you mean epochs?"),
    (
        "hyperparameters: {epochs: three}",
        "hyperparameters.epochs: must be a whole number >= 1 and <= 100000, got 'three'",
    ),
    ("hyperparameters: {epochs: 0}", "hyperparameters.epochs: must be a whole number >= 1 and <= 100000, got 0"),
    ("hyperparameters: {do_SE: 1}", "hyperparameters.do_SE: must be true or false, got 1"),
    ("hyperparameters: {momentum: 1.5}", "hyperparameters.momentum: must be a number >= 0 and < 1, got 1.5"),
    ("hyperparameters: {learning_rate: .nan}", "hyperparameters.learning_rate: must be a number > 0, got nan"),
    ("hyperparameters: {activation: gelu}", "hyperparameters.activation: must be relu or swish or hswish, got 'gelu'"),
    ("hyperparameters: {precision: 16}", "hyperparameters.precision: must be fp32 or bf16 or fp16 or auto, got 16"),
    (
        "hyperparameters: {image_size: 31}",
        "hyperparameters.image_size: must be a whole number >= 32 and <= 4096, got 31",
    ),
    (
        "hyperparameters: {autoaugment: true, randaugment: true}",
        "autoaugment and randaugment are both true: choose one",
    ),
    ("hyperparameters: {cutout: true, cutout_length: 300}", "cutout_length 300 exceeds the training images' size 224"),
    (
        "hyperparameters: {repeated_augmentation: 3}",
        "repeated_augmentation 3 does not divide global_batch_size 1024: choose a batch that it divides",
    ),
    ("hyperparameters: {stem: cifar, stem_stride: 1}", "stem_stride 1 is for the imagenet stem, the cifar stem has no"),
    ("hyperparameters: {compile: fast}", "compile: must be auto or graphs or true or false, got 'fast'"),
    ("hyperparameters: {random_erasing: 1.5}", "random_erasing: must be a number >= 0 and <= 1, got 1.5"),
    ("hyperparameters: {train_image_size: 16}", "train_image_size 16 is too small: the network needs 32 pixels"),
    (
        "hyperparameters: {train_image_size: big}",
        "train_image_size: must be a whole number <= 4096 or two whole numbers <= 4096, or null, got 'big'",
    ),
    ("hyperparameters: {epochs: 5, lr_epochs: 6}", "hyperparameters.lr_epochs is 6 and epochs 5: keep epochs only"),
    ("hyperparameters: {genotype: darts_v3}", "'darts_v3': neither a file nor a known cell; did you mean darts-v"),
    ("hyperparameters: [1]", "hyperparameters must be a mapping"),
    ("data: {buckt_name: x}", "data.buckt_name: unknown key; did you mean bucket_name?"),
    ("data: {bucket_name: x, location: y}", "bucket_name and location are both set: keep one"),
    ("searchr: {}", "unknown key searchr; did you mean searcher?"),
    ("records_per_epoch: 3", "records_per_epoch is no longer a key of Determined experiments: remove it"),
    ("data: {streaming: true", "line 1: not valid YAML"),
    ("a: 1\na: 2", "line 2: not valid YAML: key 'a' is given twice"),
    ("- 1", "an experiment file is a mapping"),
    (
        "hyperparameters: {learning_rate: {type: log, minval: -3, maxval: 0}}",
        "hyperparameters.learning_rate is a search space, which a cluster resolves",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_files_get_one_line_with_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as refusal:
        load_experiment(path)
    assert message in str(refusal.value)
    assert "bad.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["''", "'  '", "<your-bucket>"])
@pytest.mark.parametrize("key", ["bucket_name", "location"])
def test_field_report_38_an_empty_or_unfilled_place_is_never_generated_images(
    tmp_path: Path, key: str, value: str
) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(f"data: {{{key}: {value}}}")
    with pytest.raises(RequestError, match="name a location"):
        load_experiment(path)


def test_field_report_8_a_genotype_is_never_evaluated(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.yaml", tmp_path / "proof"
    evil = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    for genotype in (evil, f"Genotype(normal={evil}, normal_concat=[2], reduce=[], reduce_concat=[2])"):
        path.write_text(yaml.safe_dump({"hyperparameters": {"genotype": genotype}}))
        with pytest.raises(RequestError, match="genotype"):
            load_experiment(path)
    assert not proof.exists()


def test_overrides_set_one_value_each(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("hyperparameters: {epochs: 3}")
    experiment = load_experiment(path, ["hyperparameters.epochs=7", "hyperparameters.learning_rate=1e-3"], data="/x")
    assert experiment.hyperparameters.epochs == 7
    assert experiment.hyperparameters.learning_rate == 0.001
    assert experiment.data.resolved_location == "/x"
    for override, message in [
        ("hyperparameters.epochs", "expected KEY=VALUE"),
        ("epochs=3", "did you mean hyperparameters.epochs"),
        ("hyperparameters.epochs.x=3", "is a value, not a block"),
        ("hyperparameters.epoch=3", "did you mean epochs?"),
    ]:
        with pytest.raises(RequestError, match=message):
            load_experiment(path, [override])
    with pytest.raises(RequestError, match="--data is empty"):
        load_experiment(path, data="")


def test_the_resolved_file_reads_back_as_the_same_experiment() -> None:
    tree = {"name": "x", "searcher": {"name": "single"}, "hyperparameters": {"epochs": 3, "weight_decay": 1e-7}}
    experiment = experiment_from(tree)
    text = experiment.to_yaml()
    again = experiment_from(yaml.safe_load(text))
    assert again.to_yaml() == text
    assert again.hyperparameters.cell == experiment.hyperparameters.cell
    assert again.name == "x"
