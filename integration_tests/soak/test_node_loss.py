"""An evaluation on a cluster of two nodes that loses workers and a node: every result once, as in a quiet run."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from vlmpress.artifact import Artifact
from vlmpress.data import Record, Turn, write_records
from vlmpress.dataset.v1 import dataset_pb2
from vlmpress_services.evaluating.shards import ShardFolder, shards_of
from vlmpress_services.evaluating.spreading import answer_shards
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import LocalRunner

SCRIPT = Path(__file__).with_name("two_nodes.py")
TIMEOUT_S = 600


def add_questions(store: LocalStore, number: int) -> Artifact:
    """A dataset of so many test questions about images that differ."""
    with store.draft() as draft:
        images = draft.path / "images"
        images.mkdir()
        records = []
        for index in range(number):
            name = images / f"{index}.png"
            buffer = io.BytesIO()
            Image.new("RGB", (24, 24), (index % 256, 255 - index % 256, 60)).save(buffer, "PNG")
            name.write_bytes(buffer.getvalue())
            records.append(Record(str(index), (name,), (Turn("what color is the shape ?", "red"),), "test"))
        write_records(draft.path / "records.jsonl", records, images)
        spec = dataset_pb2.Dataset(name="colors", num_test=number)
        return draft.commit(spec, producer=("vlmpress-services", "0.1.0"))


def test_lost_workers_and_a_lost_node_change_no_result(
    own_store: LocalStore, count: Callable[[int, int], int], tmp_path: Path
) -> None:
    num_shards, num_worker_kills = count(200, 16), count(5, 2)
    model, dataset = own_store.resolve("tiny"), add_questions(own_store, num_shards)
    shards = shards_of(model.digest, dataset.digest, num_shards, 1, 4)
    quiet = answer_shards(
        str(own_store.root), shards, tmp_path / "quiet", LocalRunner(), TaskResources(), lambda *_: None
    )
    command = [sys.executable, str(SCRIPT), str(own_store.root), model.digest, dataset.digest]
    command += [str(tmp_path / "lossy"), str(tmp_path / "found.json")]
    command += ["--questions", str(num_shards), "--worker-kills", str(num_worker_kills), "--node-kills", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(found["killed"]) == ["node", *["worker"] * num_worker_kills]
    assert found["num_nodes"] == 2
    # Each shard was counted once, and its file holds what the quiet run's does.
    assert found["done_at"] == list(range(num_shards + 1))
    assert found["answers"] == [asdict(one) for one in quiet]
    names = {path.name for path in (tmp_path / "lossy").iterdir()}
    assert names == {f"{shard.digest}.json" for shard in shards}
    results = ShardFolder(tmp_path / "lossy")
    assert [results.read(shard) for shard in shards] == [[one] for one in quiet]
