import json

import pytest
from PIL import Image

from vlmpress.data import DataError
from vlmpress_services.datasets import read_evaluation, read_split
from vlmpress_services.pipeline.config import DataConfig
from vlmpress_services.pipeline.datasets import make_dataset
from vlmpress_services.pipeline.stepping import Stepper


def _make(tmp_path, config, seed=0):
    stepper = Stepper(tmp_path / "out", seed, {"vlmpress-services": "1"})
    return stepper.run("dataset", {}, (), lambda work: make_dataset(config, seed, work))


def _llava_file(tmp_path, count=20):
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    records = []
    for i in range(count):
        name = f"{'ab'[i % 2]}/{i // 2}.png"  # the same base name in both folders
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "images" / name)
        talk = [("human", "<image>\nwhat is it?"), ("gpt", "a dot"), ("human", "red?"), ("gpt", "yes")]
        records.append({"id": i, "image": name, "conversations": [{"from": f, "value": v} for f, v in talk]})
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    return file


def test_generated_data_has_the_sizes_asked_for(tmp_path):
    artifact = _make(tmp_path, DataConfig(num_train_images=12, num_test_images=5, max_eval_questions=17))
    path = artifact.path
    assert len({r.image for r in read_split(path, "train")}) == 12
    assert len({r.image for r in read_split(path, "test")}) == 5
    assert len(read_evaluation(path)) == 17
    spec = artifact.manifest.dataset
    assert (spec.name, spec.num_train, spec.num_test) == ("shapes", 72, 30)
    assert 0 < spec.question_only_accuracy < 1


def test_a_users_file_is_split_by_image_and_asked_turn_by_turn(tmp_path):
    config = DataConfig(name="own", file=_llava_file(tmp_path), images=tmp_path / "images")
    path = _make(tmp_path, config).path
    assert len(read_split(path, "test")) == 2
    assert len(read_split(path, "train")) == 18
    assert len({r.image for r in [*read_split(path, "train"), *read_split(path, "test")]}) == 20
    assert [len(r.turns) for r in read_evaluation(path)] == [1, 1, 1, 1]
    assert {r.turns[0].question for r in read_evaluation(path)} == {"what is it?", "red?"}


def test_a_missing_image_is_named(tmp_path):
    file = _llava_file(tmp_path)
    (tmp_path / "images" / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"record 0: image: expected a file, got none at .*a/0\.png"):
        _make(tmp_path, DataConfig(file=file, images=tmp_path / "images"))
    assert not list((tmp_path / "out" / "store").glob("artifacts/*"))


def test_text_alone_is_refused(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"id": i, "question": f"q{i}", "answer": "a"}) + "\n" for i in range(20)))
    with pytest.raises(DataError, match=r"text\.jsonl: expected training records with images"):
        _make(tmp_path, DataConfig(file=file))


@pytest.mark.parametrize(
    ("question", "names", "got"),
    [("<image> and <image>", 2, "got 2"), ("what is it?", 2, "got 2"), ("is <image> red?", 1, "got 1 inside the text")],
)
def test_a_users_file_has_one_image_a_record(tmp_path, question, names, got):
    file = _llava_file(tmp_path)
    entries = json.loads(file.read_text())
    entries[3]["image"] = [entries[number]["image"] for number in range(names)]
    entries[3]["conversations"][0]["value"] = question
    file.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=f"record 3: expected at most one image, before or behind .*, {got}$"):
        _make(tmp_path, DataConfig(name="own", file=file, images=tmp_path / "images"))
