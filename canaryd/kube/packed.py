"""What is kept of a Canary in texts that no person reads: the state, and the latest records of decisions. Pure.

A text is base64 of zlib of JSON. Whatever cannot be read is a StoreError that says why; nothing is guessed, and what
is unpacked is never larger than MOST_BYTES, whatever was packed into it.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from canaryd.codec import decode, decode_state, encode, encode_state
from canaryd.errors import StoreError
from canaryd.model import Answer, Override, Record, RolloutState

FORM = 2  # of the texts; rises when an older canaryd could not read them any more
MOST_BYTES = 8 * 1024 * 1024  # of one text, unpacked
SAID = 20  # words of people that are kept with their answers


@dataclass(frozen=True, slots=True)
class Chest:
    """Records that are not yet in the companion, which of all are owed to the notifiers, and what people said."""

    records: tuple[Record, ...] = ()  # in the order of saving
    owed: tuple[str, ...] = ()  # ids, oldest first; also of records that are in the companion
    said: tuple[tuple[Override, Answer], ...] = ()  # newest last
    heard: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # id of an owed record -> who has told it
    notes: Mapping[str, str] = field(default_factory=dict)  # of the notifiers, the oldest first

    def told(self, ids: Collection[str]) -> Chest:
        """Without what is no longer owed."""
        heard = {id_: names for id_, names in self.heard.items() if id_ not in ids}
        return replace(self, owed=tuple(id_ for id_ in self.owed if id_ not in ids), heard=heard)

    def told_by(self, marks: Mapping[str, Collection[str]]) -> Chest:
        """With who has told what, as far as it is owed."""
        new = {i: tuple(sorted({*self.heard.get(i, ()), *names})) for i, names in marks.items() if i in self.owed}
        return replace(self, heard={**self.heard, **new}) if new else self

    def amended(self, bodies: Mapping[str, Mapping[str, Any]]) -> Chest:
        """With other bodies of some of the records."""
        records = tuple(replace(r, body=bodies[r.id]) if r.id in bodies else r for r in self.records)
        return replace(self, records=records)

    def plus(self, records: Sequence[Record]) -> Chest:
        """With new records."""
        owed = (*self.owed, *(r.id for r in records if r.tell))
        return replace(self, records=(*self.records, *records), owed=owed)

    def answered(self, words: Sequence[Override], answers: Sequence[Answer]) -> Chest:
        """With the first answer to each of the words that have one."""
        known = {word.id for word, _ in self.said}
        by_id = {answer.id: answer for answer in answers}
        new = [(word, by_id[word.id]) for word in words if word.id in by_id and word.id not in known]
        return replace(self, said=(*self.said, *new)[-SAID:]) if new else self


def pack_state(state: RolloutState, version: int, record: Record | None = None) -> str:
    """The state as it was saved at a version. What its `latest` says is not written twice where the record, which is
    in the chest of the same status, says the same.
    """
    value: dict[str, Any] = {"form": FORM, "version": version}
    if record is not None and state.latest == record.body:
        return _text({**value, "latest": record.id, "state": encode_state(replace(state, latest={}))})
    return _text({**value, "state": encode_state(state)})


def unpack_state(text: Any, version: int, chest: Chest) -> RolloutState:
    """Raises StoreError, also when it was saved at another version than `version`."""
    value = _value(text)
    if value.get("version") != version:
        raise StoreError(f"it was saved at version {value.get('version')}, but status.version is {version}")
    state = decode_state(value.get("state"))
    if "latest" not in value:
        return state
    for record in chest.records:
        if record.id == value["latest"]:
            return replace(state, latest=record.body)
    raise StoreError(f"it speaks of the record {value['latest']}, which is not in status.records")


def pack_chest(chest: Chest) -> str:
    """Records that resemble each other cost little."""
    said = [[encode(word), encode(answer)] for word, answer in chest.said]
    value = {"form": FORM, "records": [encode(r) for r in chest.records], "owed": list(chest.owed), "said": said}
    if chest.heard:  # an older canaryd, which does not know these, tells some again
        value["heard"] = {id_: list(names) for id_, names in chest.heard.items()}
    if chest.notes:
        value["notes"] = dict(chest.notes)
    return _text(value)


def unpack_chest(text: Any) -> Chest:
    """Raises StoreError."""
    value = _value(text)
    records, owed, said = (_list(value, key) for key in ("records", "owed", "said"))
    if not all(isinstance(id_, str) for id_ in owed):
        raise StoreError("owed: expected a list of texts")
    try:
        pairs = tuple((decode(Override, word), decode(Answer, answer)) for word, answer in said)
    except (TypeError, ValueError):
        raise StoreError("said: expected pairs of a word and its answer") from None
    heard = {id_: tuple(map(str, names)) for id_, names in _mapping(value, "heard", list).items()}
    notes = _mapping(value, "notes", str)
    return Chest(tuple(decode(Record, r) for r in records), tuple(owed), pairs, heard, notes)


def pack_records(records: Sequence[Record]) -> str:
    """One chunk of the companion, base64 as in binaryData."""
    return _text({"form": FORM, "records": [encode(r) for r in records]})


def unpack_records(text: Any) -> tuple[Record, ...]:
    """Raises StoreError."""
    return tuple(decode(Record, r) for r in _list(_value(text), "records"))


def _text(value: Any) -> str:
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    return b64encode(zlib.compress(data, 9)).decode("ascii")


def _value(text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise StoreError(f"expected a text, found {type(text).__name__}")
    try:
        reader = zlib.decompressobj()
        data = reader.decompress(b64decode(text, validate=True), MOST_BYTES)
        value = json.loads(data.decode(errors="surrogatepass")) if reader.eof and not reader.unused_data else None
    except (ValueError, RecursionError, zlib.error) as e:
        raise StoreError(f"it is damaged: {e}") from None
    if not isinstance(value, dict) or type(value.get("form")) is not int:
        raise StoreError("it is cut off, too large, or none of canaryd's texts")
    if value["form"] > FORM:
        raise StoreError(f"it was written by a newer canaryd (form {value['form']}, this one knows {FORM})")
    return value


def _list(value: dict[str, Any], key: str) -> list[Any]:
    found = value.get(key, [])
    if not isinstance(found, list):
        raise StoreError(f"{key}: expected a list")
    return found


def _mapping(value: dict[str, Any], key: str, kind: type) -> dict[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(v, kind) for v in found.values()):
        raise StoreError(f"{key}: expected a mapping of {'lists' if kind is list else 'texts'}")
    return found
