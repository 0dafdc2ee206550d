"""Tags of a store on a disk: compare-and-swap, removal, damage."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vlmpress.artifact import ArtifactFaultError
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError
from vlmpress_services.store.interface import Expected
from vlmpress_services.store.local import LocalStore


def test_a_tag_is_set_only_where_it_is_expected(store: LocalStore, add_log: Any) -> None:
    first, second = add_log("a").digest, add_log("b").digest
    store.tag("it", first, Expected(None))
    with pytest.raises(ConflictError) as caught:
        store.tag("it", second, Expected(None))
    assert caught.value.metadata == {"found": first}
    with pytest.raises(ConflictError):
        store.tag("it", second, Expected("0" * 64))
    with pytest.raises(ConflictError) as caught:
        store.tag("other", second, Expected(first))
    assert caught.value.metadata == {"found": ""}
    store.tag("it", second, Expected(first))
    assert store.tags() == {"it": second}


def test_a_change_made_twice_is_made(store: LocalStore, add_log: Any) -> None:
    first, second = add_log("a").digest, add_log("b").digest
    store.tag("it", first)
    for _ in range(2):
        store.tag("it", second, Expected(first))
    assert [store.untag("it", Expected(second)), store.untag("it", Expected(second))] == [True, False]


def test_a_tag_is_removed_only_where_it_is_expected(store: LocalStore, add_log: Any) -> None:
    digest = add_log().digest
    store.tag("it", digest)
    with pytest.raises(ConflictError):
        store.untag("it", Expected("0" * 64))
    with pytest.raises(InvalidRequestError):
        store.untag("../it")
    assert store.untag("it")
    with pytest.raises(NotFoundError):
        store.resolve("it")
    assert store.has(digest)


def test_a_damaged_tag_can_be_set_again_by_who_expects_nothing(store: LocalStore, add_log: Any) -> None:
    digest = add_log().digest
    store.tag("it", digest)
    (store.root / "tags" / "it").write_bytes(b"\xff\0")
    with pytest.raises(ArtifactFaultError):
        store.tag("it", digest, Expected(digest))
    store.tag("it", digest)
    assert store.tags() == {"it": digest}


def test_of_many_swaps_at_once_one_wins(store: LocalStore, add_log: Any) -> None:
    digests = [add_log(str(number)).digest for number in range(8)]

    def swap(digest: str) -> bool:
        try:
            store.tag("it", digest, Expected(None))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(swap, digests))
    assert won.count(True) == 1
    assert store.tags() == {"it": digests[won.index(True)]}
