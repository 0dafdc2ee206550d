from pathlib import Path

import pytest

from stagetrain import CompressionSetting, Stage
from stagetrain.errors import ConfigError
from stagetrain.runs.config_file import preset_names
from stagetrain.runs.run_config import RunConfig, read_run_config

WHOLE = """\
model: models/vlm
out: trained
data:
  records: data.jsonl
  images: images
  order: length
collator:
  pack: false
  image_position: random
schedule:
  name: mine
  stages:
    - fraction: 0.25
      compressor: random
      layer: 2
      stride: 8
      trainable: [connectors]
      learning_rate_scale: 2
    - {fraction: 0.75}
training:
  max_steps: 40
  learning_rate: 2e-5
  bf16: true
  report_to: tensorboard
freeze: [vision]
"""


def read(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return read_run_config(str(tmp_path / "run.yaml"), overrides)


def test_a_whole_file(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE, "training.max_steps=80", "schedule.stages.0.stride=4", "data.split=train")
    assert (config.model, config.out, config.freeze) == ("models/vlm", Path("trained"), ("vision",))
    assert (config.data.order, config.data.split) == ("length", "train")
    assert config.checkpoint_dir == Path("trained-checkpoints")
    schedule = config.schedule_for(num_layers=4, num_visual_tokens=16)
    assert schedule.name == "mine"
    first = CompressionSetting(layer=2, stride=4, compressor="random")
    assert schedule.stages == (
        Stage(fraction=0.25, compression=first, trainable=("connectors",), learning_rate_scale=2.0),
        Stage(fraction=0.75),
    )
    args = read(tmp_path, WHOLE.replace("bf16: true", "use_cpu: true"), "training.max_steps=80").training_arguments()
    assert (args.max_steps, args.learning_rate, args.report_to) == (80, 2e-5, ["tensorboard"])


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_whole_but_for_paths(name: str) -> None:
    with pytest.raises(ConfigError, match="expected the key"):
        read_run_config(name)
    config = read_run_config(name, ["model=m", "out=o", "data.records=d.jsonl"])
    schedule = config.schedule_for(num_layers=8, num_visual_tokens=576)
    assert sum(stage.fraction for stage in schedule.stages) == pytest.approx(1)
    assert config.places.of(("training", "learning_rate")).startswith(f"preset {name}:")


def change(old: str, new: str) -> str:
    assert old in WHOLE
    return WHOLE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE + "colour: red\n", r"run.yaml:26: colour: expected one of model, out, data, .*, got the key 'colour'"),
        (change("  order: length", "  order: odd"), r"run.yaml:6: data.order: expected 'shuffled' or .*, got 'odd'"),
        (change("fraction: 0.25", "fraction: 0.5"), r"run.yaml:12: schedule.stages: .* sum to 1, got 1.25"),
        (
            change("fraction: 0.25", "fraction: much"),
            r"run.yaml:13: .*stages.0.fraction: expected a number or null, got 'much'",
        ),
        (change("compressor: random", "compressor: zip"), r"run.yaml:14: .*compressor: expected one of .*, got 'zip'"),
        (change("      layer: 2\n", ""), r"run.yaml:13: schedule.stages.0: expected layer and stride together"),
        (
            change("stride: 8", "width: 8"),
            r"run.yaml:16: .*width: expected one of fraction, epochs, compressor, layer, st",
        ),
        (change("max_steps: 40", "max_steps: forty"), r"run.yaml:21: training.max_steps: expected a whole number"),
        (change("max_steps: 40", "steps: 40"), r"run.yaml:21: training.steps: expected one of .*max_steps"),
        (change("bf16: true", "output_dir: x"), r"run.yaml:23: training.output_dir: expected one of"),
        (change("pack: false", "pack: 3"), r"run.yaml:8: collator.pack: expected true or false, got 3"),
        (change("pack: false", "packed: true"), r"run.yaml:8: collator.packed: expected one of max_questions_per_im"),
        (change("out: trained\n", ""), r"run.yaml:1: expected the key out, got model, data"),
        (change("freeze: [vision]", "freeze: vision"), r"run.yaml:25: freeze: expected a list of text, got 'vision'"),
        (change("freeze: [vision]", "model: again"), r"run.yaml:25: model: expected a key once"),
        (change("name: mine", "name: [mine"), r"run.yaml:\d+: expected YAML"),
        ("- 1\n", r"run.yaml:1: expected a mapping, got \[1\]"),
        ("", r"run.yaml: expected the key model, got none"),
        (WHOLE + "schedule_: x\n", r"run.yaml:26: schedule_"),
        (change("model: models/vlm", "model: models/vlm\nmax_skipped: -1"), r"run.yaml:2: max_skipped: expected at l"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps=many", r"override 'training.max_steps=many': training.max_steps: expected a whole number"),
        ("colour=red", r"override 'colour=red': colour: expected one of model"),
        ("max_skipped", r"override 'max_skipped': expected key=value"),
        ("schedule.stages.7.stride=2", r"override .*: expected a number below 2 in place of '7'"),
        ("model.x=2", r"override 'model.x=2': expected a mapping at model, got 'models/vlm'"),
        ("schedule=three", r"override 'schedule=three': schedule: expected stages or one of plain, two_stage"),
        ("out=[", r"override 'out=\[': expected a YAML value"),
    ],
)
def test_errors_name_the_override(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, WHOLE, override)


def test_a_scheme_takes_another_split(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE, "schedule={scheme: two_stage, fractions: [0.25, 0.75]}")
    stages = config.schedule_for(num_layers=32, num_visual_tokens=576).stages
    assert [stage.fraction for stage in stages] == [0.25, 0.75]
    assert stages[0].compression == CompressionSetting(layer=2, stride=8)
    for split, message in [
        ("scheme: two_stage, fractions: [0.5, 0.6]", r"schedule.fractions: .* sum to 1"),
        ("scheme: two_stage, fractions: [1.0]", r"schedule.fractions: .*expected 2 fractions, got 1"),
        ("scheme: two", r"schedule.scheme: .*expected one of"),
        ("scheme: two_stage, stages: []", r"schedule.stages: expected them or a scheme, got both"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, WHOLE, f"schedule={{{split}}}")


EPOCHS = """\
model: m
out: o
data: {records: d.jsonl}
schedule:
  restarts: true
  stages:
    - {epochs: 3}
    - {epochs: 0.5, batch_size_scale: 0.25}
training: {per_device_train_batch_size: 8, gradient_accumulation_steps: 2, use_cpu: true}
"""


def test_epochs_are_steps(tmp_path: Path) -> None:
    config = read(tmp_path, EPOCHS)
    steps = config.stage_steps(config.training_arguments(), 100)
    # 300 samples in batches of 16, and 50 in batches of 4; the last of each is filled up.
    assert steps == (19, 13)
    schedule = config.schedule_for(4, None, steps)
    assert schedule.restarts
    assert schedule.borders(32) == (0, 19, 32)
    assert [stage.fraction for stage in config.schedule_for(4, None).stages] == [0.6, 0.4]
    assert config.stage_steps(config.training_arguments(), 1) == (1, 1)
    assert read(tmp_path, WHOLE, "training.bf16=false").stage_steps(config.training_arguments(), 9) is None
    named = read(tmp_path, EPOCHS, "schedule={scheme: two_stage, restarts: true}")
    assert named.schedule_for(4, 16).restarts
    assert read(tmp_path, EPOCHS, "schedule=auroraedge").schedule_for(4, 16).restarts


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.stages.1.fraction=0.5", r"run.yaml:8: schedule.stages.1: expected a fraction in every stage, or ep"),
        ("schedule.stages.0={fraction: 0.5}", r"run.yaml:8: schedule.stages.1: expected a fraction in every stage"),
        ("schedule.stages.0={trainable: [vision]}", r"schedule.stages.0: expected a fraction in every stage, or epoch"),
        ("schedule.stages.0.epochs=0", r"schedule.stages.0.epochs: expected a positive number, got 0"),
        ("schedule.stages.1.batch_size_scale=-1", r"schedule.stages.1: .*batch_size_scale: expected a positive number"),
        ("training.num_train_epochs=3", r"training.num_train_epochs: expected it or epochs of stages, got both"),
    ],
)
def test_impossible_epochs_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, EPOCHS, override)


def test_a_batch_is_of_whole_samples(tmp_path: Path) -> None:
    config = read(tmp_path, EPOCHS, "schedule.stages.1.batch_size_scale=0.3")
    with pytest.raises(ConfigError, match=r"stages.1.batch_size_scale: .* batches of 8 a whole number of samples, got"):
        config.stage_steps(config.training_arguments(), 100)


def test_what_needs_the_model_names_the_line_too(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE)
    with pytest.raises(ConfigError, match=r"run.yaml:15: .*layer: expected a layer below the decoder's 2, got 2"):
        config.schedule_for(num_layers=2, num_visual_tokens=16)
    with pytest.raises(ConfigError, match=r"run.yaml:16: .*stride: expected a stride of at most an image's 4 visual"):
        config.schedule_for(num_layers=4, num_visual_tokens=4)
    with pytest.raises(ConfigError, match=r"run.yaml:20: training: expected settings that go together, got .*bf16"):
        read(tmp_path, WHOLE, "training.fp16=true").training_arguments()
    with pytest.raises(ConfigError, match=r"expected a \.yaml file or one of the presets auroraedge, "):
        read_run_config("nothing")
    with pytest.raises(ConfigError, match="expected a readable YAML file"):
        read_run_config(str(tmp_path / "missing.yaml"))
