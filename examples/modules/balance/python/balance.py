"""Balances of accounts, in Python: see ../README.md for what it does."""

import struct

import wit_world
from componentize_py_types import Err
from wit_world.imports import emit, state_read, state_write
from wit_world.imports.types import (
    EventBatch,
    KeyRange,
    Kind,
    Manifest,
    Subscription,
    TableDecl,
)

DEPOSIT, WITHDRAW, CLOSE, AUDIT = range(4)
ACCOUNTS, TOTALS = range(2)
# Parts of an event: stream, type, id, metadata, payload.
PARTS = 5


class WitWorld(wit_world.WitWorld):
    def describe(self) -> Manifest:
        return Manifest(
            name="balance",
            version="0.1.0",
            abi=1,
            kind=Kind.PROCESSOR,
            subscriptions=[
                Subscription(stream="account-*", event_type="deposit"),
                Subscription(stream="account-*", event_type="withdraw"),
                Subscription(stream="account-*", event_type="close"),
                Subscription(stream="audit", event_type="run"),
            ],
            tables=[
                TableDecl(name="accounts", version=1, module=""),
                TableDecl(name="totals", version=1, module=""),
            ],
        )

    def process(self, batch: EventBatch) -> None:
        for event, kind in enumerate(batch.kinds):
            stream = part(batch, event, 0).decode()
            payload = part(batch, event, 4).decode()
            if kind == DEPOSIT:
                move_by(event, stream, parse(payload))
            elif kind == WITHDRAW:
                move_by(event, stream, -parse(payload))
            elif kind == CLOSE:
                if not state_write.delete(ACCOUNTS, key_of(stream)):
                    raise Err(f"{stream} is not open")
            elif kind == AUDIT:
                audit()
            else:
                raise Err("the host gave an event of no handler")

    def migrate(self, previous: Manifest) -> None:
        pass


def part(batch: EventBatch, event: int, index: int) -> bytes:
    at = event * PARTS + index
    return batch.data[batch.ends[at - 1] if at > 0 else 0 : batch.ends[at]]


def parse(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 0xFFFFFFFF:
        raise Err(f"{text} is no amount")
    return int(text)


def key_of(name: str) -> bytes:
    # Names of streams hold no control characters, so none of their bytes is 0.
    return name.encode() + b"\0\0"


def move_by(source: int, name: str, amount: int) -> None:
    key = key_of(name)
    old = state_read.get(ACCOUNTS, key)
    balance, movements = struct.unpack("<qI", old) if old is not None else (0, 0)
    balance += amount
    state_write.set(ACCOUNTS, key, struct.pack("<qI", balance, movements + 1))
    if balance < 0:
        emit.emit(source, "alerts", "overdrawn", "text/plain", f"{name} {balance}".encode())


def audit() -> None:
    accounts, total, start, more = 0, 0, b"", True
    while more:
        rows = state_read.scan(ACCOUNTS, KeyRange(start, None), 100, False)
        begin = 0
        for key_end, value_end in zip(rows.ends[0::2], rows.ends[1::2]):
            accounts += 1
            total += struct.unpack_from("<q", rows.data, key_end)[0]
            # The next page begins right after this key.
            start = rows.data[begin:key_end] + b"\0"
            begin = value_end
        more = rows.more
    mean = total / accounts if accounts > 0 else 0.0
    state_write.set(TOTALS, b"", struct.pack("<Qqd", accounts, total, mean))
