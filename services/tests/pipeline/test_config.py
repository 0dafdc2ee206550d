from pathlib import Path

import pytest

from vlmpress.cli import UserError
from vlmpress_services.pipeline.config import RunConfig, parse_config, read_config


def test_an_empty_file_is_the_demo():
    assert parse_config("", "c.yaml") == RunConfig()


def test_a_step_keeps_the_defaults_it_does_not_name():
    config = parse_config("teacher: {num_steps: 7}\nseed: 3", "c.yaml")
    assert config.seed == 3
    assert config.teacher.num_steps == 7
    assert config.teacher.scheme == RunConfig().teacher.scheme
    assert config.teacher.num_layers == RunConfig().teacher.num_layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 3", "c.yaml: sed: .*got 3"),
        ("teacher: {num_steps: many}", "c.yaml: teacher.num_steps: .*integer.*got 'many'"),
        ("runner: slurm", "c.yaml: runner: .*'ray'.*got 'slurm'"),
        ("- 1", "c.yaml: top level: .*got \\[1\\]"),
        ("a: [", "c.yaml: expected YAML"),
        ("data: {num_train_images: 0}", "c.yaml: data: .*at least one"),
    ],
)
def test_a_fault_is_named_with_place_expected_and_got(text, message):
    with pytest.raises(UserError, match=message):
        parse_config(text, "c.yaml")


def test_a_missing_file_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent\.yaml: expected a readable YAML file"):
        read_config(tmp_path / "absent.yaml")
