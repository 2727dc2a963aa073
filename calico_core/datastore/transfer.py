"""Carrying a whole store elsewhere: to a file and back, or straight into another store. Drivers do not matter.

What is not carried: keys under a lease and the status that agents write by themselves; it belongs to the moment.
Source: datastore specification, section 11.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, NamedTuple

from calico_core.errors import CalicoError, DatastoreError, InvalidRecord, InvalidRequest
from calico_core.interfaces.datastore import MAX_TRANSACTION_OPERATIONS, Delete, Operation, Put
from calico_core.model import codec
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import FELIX_STATUS, NODE_STATUS, ROOT, ReadyKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from calico_core.interfaces.datastore import Datastore

READY = ReadyKey().path
_NOT_CARRIED = (FELIX_STATUS, NODE_STATUS)
_TRANSACTION_BYTES = 512 * 1024
"""etcd takes requests of 1.5 MiB."""
_ROUNDS = 5
_KEY, _TEXT, _BYTES = "key", "value", "base64"


class Contents(NamedTuple):
    """What a store held, by key in order."""

    values: dict[str, bytes]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.values.values()))

    @property
    def bad_records(self) -> dict[str, str]:
        """Paths of records that we could not read ourselves, with the reason. They are carried all the same."""
        bad = {}
        for path, value in self.values.items():
            key = parse_key(path)
            try:
                if key is not None:
                    codec.decode(key, value)
            except InvalidRecord as error:
                bad[path] = str(error)
        return bad


class NotTheSame(DatastoreError):
    """The check after a copy found a difference. ``differing`` are keys."""

    def __init__(self, differing: tuple[str, ...]) -> None:
        shown = ", ".join(differing[:5]) + (", …" if len(differing) > 5 else "")
        super().__init__(f"the copy differs in {len(differing)} keys: {shown}")
        self.differing = differing


class TargetNotEmpty(DatastoreError):
    """The store to copy into holds something already."""

    def __init__(self, held: int) -> None:
        super().__init__(f"the target holds {held} records already")
        self.held = held


def read_contents(store: Datastore) -> Contents:
    """Everything that can be carried, as of one revision."""
    return Contents(
        {
            entry.key: entry.value
            for entry in store.list(ROOT).entries
            if entry.lease is None and not entry.key.startswith(_NOT_CARRIED)
        }
    )


# --- as text -----------------------------------------------------------------------------------------------


def to_lines(contents: Contents) -> Iterator[str]:
    """JSON lines in the order of keys. A value that is no UTF-8 text stands under ``base64``."""
    for key, value in sorted(contents.values.items()):
        try:
            shown = {_KEY: key, _TEXT: value.decode()}
        except UnicodeDecodeError:
            shown = {_KEY: key, _BYTES: base64.b64encode(value).decode()}
        yield json.dumps(shown, ensure_ascii=False) + "\n"


def from_lines(lines: Iterable[str]) -> Contents:
    """The reverse. Raises ``InvalidRequest`` with the number of the line."""
    values: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, value = _parse(line, f"line {number}")
        if key in values:
            raise InvalidRequest(f"line {number}", f"{key} stands there twice")
        values[key] = value
    return Contents(dict(sorted(values.items())))


def _parse(line: str, field: str) -> tuple[str, bytes]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(field, f"is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(key := found.get(_KEY), str) or not key.startswith(ROOT):
        raise InvalidRequest(field, f'is not of the form {{"key": "{ROOT}…", "value": "…"}}')
    text, encoded = found.get(_TEXT), found.get(_BYTES)
    try:
        if isinstance(text, str) and encoded is None:
            return key, text.encode()
        if isinstance(encoded, str) and text is None:
            return key, base64.b64decode(encoded, validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise InvalidRequest(field, f"the value of {key} is broken: {error}") from error
    raise InvalidRequest(field, f"{key} needs a text, as value or as base64")


# --- into a store ------------------------------------------------------------------------------------------


def require_empty(store: Datastore) -> None:
    """Raises ``TargetNotEmpty``. A lone ``Ready`` that is not ``true`` is what an interrupted copy leaves at its very
    beginning, and no content."""
    held = read_contents(store).values
    if held and not (held.keys() == {READY} and held[READY] != b"true"):
        raise TargetNotEmpty(len(held))


def write_contents(store: Datastore, contents: Contents) -> None:
    """Make the store hold exactly these, and check it. Not ready while this lasts; the contents' own ``Ready`` comes
    last. Whatever interrupts it leaves a store that no node uses. Raises ``NotTheSame``."""
    wanted = {key: value for key, value in contents.values.items() if key != READY}
    store.put(READY, b"false")
    _make_equal(store, wanted)
    _check(store, wanted)
    ready = contents.values.get(READY)
    if ready is None:
        store.delete(READY)
    elif ready != b"false":
        store.put(READY, ready)


def _make_equal(store: Datastore, wanted: Mapping[str, bytes]) -> None:
    held = {key: value for key, value in read_contents(store).values.items() if key != READY}
    operations: list[Operation] = [Delete(key) for key in held if key not in wanted]
    operations += [Put(key, value) for key, value in wanted.items() if held.get(key) != value]
    for batch in _transactions(operations):
        store.transact([], batch)


def _transactions(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    batch: list[Operation] = []
    size = 0
    for operation in operations:
        added = len(operation.key) + (len(operation.value) if isinstance(operation, Put) else 0)
        if batch and (len(batch) == MAX_TRANSACTION_OPERATIONS or size + added > _TRANSACTION_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(operation)
        size += added
    if batch:
        yield batch


def _check(store: Datastore, wanted: Mapping[str, bytes]) -> None:
    held = read_contents(store).values
    differing = [key for key in wanted if held.get(key) != wanted[key]]
    differing += [key for key in held if key not in wanted and key != READY]
    if differing:
        raise NotTheSame(tuple(differing))


# --- from store to store -----------------------------------------------------------------------------------


def migrate(source: Datastore, target: Datastore, *, on_step: Callable[[str], None] = lambda _: None) -> Contents:
    """Copy ``source`` over what ``target`` holds; what was copied. The source is not ready from here on, and stays so:
    the target is, once it is proven the same. When anything fails or is interrupted the source becomes ready again,
    and the target does not."""
    before = source.get(READY)
    on_step("the old store is not ready: agents keep what they programmed, nothing is attached")
    source.put(READY, b"false")
    try:
        contents = _copy_until_quiet(source, target, on_step)
        if before is not None:
            target.put(READY, b"true")
    except BaseException:
        if before is not None:
            open_again(source)
        else:
            source.delete(READY)
        raise
    return contents


def open_again(source: Datastore) -> None:
    """What a migration that was killed could not do."""
    source.put(READY, b"true")


def _copy_until_quiet(source: Datastore, target: Datastore, on_step: Callable[[str], None]) -> Contents:
    """A detach that had begun may still write: copy again until nothing changed while we copied."""
    for _ in range(_ROUNDS):
        contents = read_contents(source)
        on_step(f"copying {len(contents.values)} records, {contents.size_bytes} bytes")
        write_contents(target, contents)
        after = read_contents(source)
        if after.values == contents.values:
            return contents
        on_step("the old store was written to meanwhile: again")
    raise StillWritten(_ROUNDS)


class StillWritten(CalicoError):
    """Somebody goes on writing to a store that is not ready."""

    retryable = True

    def __init__(self, rounds: int) -> None:
        super().__init__(f"the old store was written to in each of {rounds} rounds; who ignores that it is not ready?")
        self.rounds = rounds
