"""Garbage collection by reachability, against a slow reference."""

import os
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from vlmpress.artifact import Artifact, ArtifactFaultError
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import NotFoundError
from vlmpress_services.store.local import LocalStore


def add(store: LocalStore, text: str, parents: Iterable[str] = ()) -> str:
    with store.draft() as draft:
        (draft.path / "text").write_text(text)
        named = [("from", digest) for digest in parents]
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"), parents=named).digest


def nothing() -> list[str]:
    return []


def digests(found: Iterable[Any]) -> set[str]:
    return {artifact.digest for artifact in found}


def test_only_what_nothing_leads_to_goes(store: LocalStore) -> None:
    base = add(store, "base")
    model = add(store, "model", [base])
    pack = add(store, "pack", [model])
    root = add(store, "root")
    lost, lost_child = add(store, "lost"), add(store, "lost child", [base])
    store.tag("pack", pack)
    assert digests(store.collect_garbage(lambda: [root, "no digest"], 0, dry_run=True)) == {lost, lost_child}
    assert len(store.digests()) == 6
    assert digests(store.collect_garbage(lambda: [root, "no digest"], 0)) == {lost, lost_child}
    assert set(store.digests()) == {base, model, pack, root}
    assert store.collect_garbage(lambda: [root], 0) == []
    assert not list((store.root / "incoming").iterdir())
    store.untag("pack")
    assert digests(store.collect_garbage(nothing, 0)) == {base, model, pack, root}


def test_what_is_young_stays_with_what_it_was_made_from(store: LocalStore) -> None:
    old = add(store, "old")
    young = add(store, "young", [old])
    older = add(store, "older")
    for digest in (old, older):
        os.utime(store.locate(digest), (1e9, 1e9))
    assert digests(store.collect_garbage(nothing, 3600)) == {older}
    assert set(store.digests()) == {old, young}
    os.utime(store.locate(young), (1e9, 1e9))
    add(store, "young", [old])  # the same again makes it young
    assert store.collect_garbage(nothing, 3600) == []
    os.utime(store.locate(young), (1e9, 1e9))
    store.refresh(young)
    assert store.collect_garbage(nothing, 3600) == []


@pytest.mark.parametrize("seed", range(5))
def test_any_graph_as_a_slow_reference(store: LocalStore, seed: int) -> None:
    chance = random.Random(seed)
    made: list[str] = []
    parents: dict[str, list[str]] = {}
    for number in range(20):
        chosen = chance.sample(made, min(len(made), chance.randrange(3)))
        digest = add(store, str(number), chosen)
        parents[digest] = chosen
        made.append(digest)
    starts = chance.sample(made, 3)
    store.tag("it", starts[0])
    kept = set(starts)
    for _ in made:
        kept |= {parent for digest in kept for parent in parents[digest]}
    store.collect_garbage(lambda: starts[1:], 0)
    assert set(store.digests()) == kept


def test_a_missing_parent_is_no_fault(store: LocalStore) -> None:
    child = add(store, "child", ["0" * 64])
    store.tag("it", child)
    assert store.collect_garbage(nothing, 0) == []


def test_a_damaged_manifest_ends_it_before_anything_is_gone(store: LocalStore) -> None:
    for text in "abc":
        add(store, text)
    (store.locate(store.digests()[1]) / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactFaultError):
        store.collect_garbage(nothing, 0)
    assert len(store.digests()) == 3


def test_a_tag_set_meanwhile_is_never_lost(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a collection holds the tags a tag saves its artifact; a later one finds it gone, and is refused."""
    early, late = ([add(store, f"{when} {number}") for number in range(5)] for when in ("early", "late"))
    listing, calls = store.list, []

    def tag_after_listing() -> list[Artifact]:
        found = listing()
        for digest in early:
            store.tag(f"t{digest[:8]}", digest)
        return found

    def tag_while_held() -> list[str]:
        calls.extend(pool.submit(store.tag, f"t{digest[:8]}", digest) for digest in late)
        assert not wait(calls, timeout=0.5).done, "a tag was set while garbage was looked for"
        return []

    monkeypatch.setattr(store, "list", tag_after_listing)
    with ThreadPoolExecutor(len(late)) as pool:
        assert digests(store.collect_garbage(tag_while_held, 0)) == set(late)
        for call in calls:
            with pytest.raises(NotFoundError):
                call.result()
    assert sorted(store.tags().values()) == list(store.digests()) == sorted(early)
    assert all(store.verify(digest) for digest in early)
