#!/usr/bin/env python3
"""Checks a TruthDB inclusion proof, without any code of TruthDB.

    python3 verify_proof.py proof.json [--chain HEX] [--json]

Needs Python 3.8 or later and the package `blake3` (`pip install blake3`).

Exit status: 0 the proof holds, 1 it does not, 2 it cannot be read or the command is wrong.

What is computed (H is BLAKE3, 32 bytes; numbers little-endian; || joins bytes):

    event leaf = H(0x00 || sequence u64 || revision u64 || canonical event bytes)
    batch leaf = H(0x01 || first_sequence u64 || event_count u32 || timestamp u64 || events)
                 where `events` is what the event's path leads to
    node       = H(0x02 || left || right)
    chain      = H(0x03 || database id || partition u32 || segment u32 || base u64 || last u64
                   || root || previous chain)
"""

import argparse
import base64
import binascii
import datetime
import json
import re
import struct
import sys

try:
    from blake3 import blake3
except ImportError:
    sys.exit("verify_proof: the package `blake3` is missing: pip install blake3")

VERSION = 1
HEX = re.compile(r"[0-9a-f]*\Z")


class BadProof(Exception):
    """The proof does not hold; the text says why."""


def require(condition, reason):
    if not condition:
        raise BadProof(reason)


def h(*parts):
    return blake3(b"".join(parts)).digest()


def u64(value):
    return struct.pack("<Q", value)


def u32(value):
    return struct.pack("<I", value)


def unhex(text, length, name):
    require(isinstance(text, str) and len(text) == 2 * length and HEX.match(text),
            f"{name} is not {length} bytes in lower-case hexadecimal")
    return bytes.fromhex(text)


def number(obj, name, bits):
    value = obj[name]
    require(type(value) is int and 0 <= value < 1 << bits, f"{name} is not a number of {bits} bits")
    return value


def climb(leaf, path, name):
    """Follows a path from a leaf up. Returns the hash and on which side each neighbour was."""
    sides = []
    for step in path:
        neighbour = unhex(step["hash"], 32, f"{name}.hash")
        require(step["side"] in ("left", "right"), f"{name}.side is neither left nor right")
        is_left = step["side"] == "left"
        leaf = h(b"\x02", neighbour, leaf) if is_left else h(b"\x02", leaf, neighbour)
        sides.append(is_left)
    return leaf, sides


def shape(index, count):
    """Sides of the neighbours of a leaf; a node without a right neighbour moves up unchanged."""
    sides = []
    while count > 1:
        if index % 2 == 1:
            sides.append(True)
        elif index + 1 < count:
            sides.append(False)
        index //= 2
        count = (count + 1) // 2
    return sides


def parse_event(data):
    """The parts of a canonical event."""
    require(len(data) >= 28, "the event is cut short")
    payload_bytes, metadata_bytes, tags_bytes, stream, kind, content, reserved = struct.unpack(
        "<IHHBBBB", data[16:28])
    sizes = [stream, kind, content, tags_bytes, metadata_bytes, payload_bytes]
    require(reserved == 0 and stream > 0 and kind > 0 and 28 + sum(sizes) == len(data),
            "the lengths of the event do not add up")
    parts, at = [], 28
    for size in sizes:
        parts.append(data[at:at + size])
        at += size
    tags, at = [], 0
    while at < tags_bytes:
        size = parts[3][at]
        tags.append(parts[3][at + 1:at + 1 + size].decode())
        at += 1 + size
    return {
        "id": data[:16].hex(),
        "stream": parts[0].decode(),
        "type": parts[1].decode(),
        "content_type": parts[2].decode(),
        "tags": tags,
        "payload": parts[5],
    }


def verify(proof):
    """Returns what the proof says; raises BadProof, KeyError, TypeError or ValueError if it does not hold."""
    require(proof["version"] == VERSION, f"version {proof['version']!r} is not known, only {VERSION}")
    event, batch, segment = proof["event"], proof["batch"], proof["segment"]
    database = unhex(proof["database_id"], 16, "database_id")
    partition = number(proof, "partition", 32)

    sequence, revision = number(event, "sequence", 64), number(event, "revision", 64)
    first, count = number(batch, "first_sequence", 64), number(batch, "event_count", 32)
    timestamp = number(batch, "timestamp_ns", 64)
    segment_number = number(segment, "segment", 32)
    base, last = number(segment, "base_sequence", 64), number(segment, "last_sequence", 64)
    require(first <= sequence < first + count, "the event does not lie in the batch")
    require(1 <= base <= first and first + count - 1 <= last, "the batch does not lie in the segment")
    require(type(segment["sealed"]) is bool, "sealed is neither true nor false")

    canonical = base64.b64decode(event["canonical"], validate=True)
    parsed = parse_event(canonical)
    events, sides = climb(h(b"\x00", u64(sequence), u64(revision), canonical), event["path"], "event.path")
    require(sides == shape(sequence - first, count), "the event's path has not the shape of its index")
    leaf = h(b"\x01", u64(first), u32(count), u64(timestamp), events)
    root, _ = climb(leaf, batch["path"], "batch.path")

    previous = unhex(segment["previous_chain"], 32, "segment.previous_chain")
    require(segment_number >= 1, "segments are counted from 1")
    require(segment_number > 1 or previous == bytes(32), "the chain does not begin with zeros")
    require(segment["sealed"] or not proof["later_segments"], "segments follow an unsealed one")

    def link(segment_number, base, last, root, previous):
        return h(b"\x03", database, u32(partition), u32(segment_number), u64(base), u64(last), root, previous)

    chain = link(segment_number, base, last, root, previous)
    for later in proof["later_segments"]:
        following, base = number(later, "segment", 32), number(later, "base_sequence", 64)
        require(following == segment_number + 1 and base == last + 1,
                "a later segment does not follow the one before")
        segment_number, last = following, number(later, "last_sequence", 64)
        require(last >= base - 1, "a later segment ends before it begins")
        chain = link(segment_number, base, last, unhex(later["root"], 32, "later_segments.root"), chain)
    claimed = unhex(proof["chain"], 32, "chain")
    require(chain == claimed, f"the path leads to the chain hash {chain.hex()}, the proof claims {claimed.hex()}")
    return {
        "database_id": database.hex(),
        "partition": partition,
        "sequence": sequence,
        "revision": revision,
        "timestamp_ns": timestamp,
        "event": parsed,
        "segment": segment_number,
        "sealed": segment["sealed"],
        "chain": chain.hex(),
    }


def describe(result):
    event = result["event"]
    seconds, rest = divmod(result["timestamp_ns"], 10**9)
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    lines = [
        "The proof holds.",
        f"  database   {result['database_id']}  partition {result['partition']}",
        f"  event      sequence {result['sequence']}, id {event['id']}",
        f"  stream     {event['stream']}, revision {result['revision']}",
        f"  type       {event['type']}",
        f"  time       {when}.{rest:09d}Z",
        f"  payload    {len(event['payload'])} bytes, BLAKE3 {blake3(event['payload']).hexdigest()}",
        f"  chain hash {result['chain']}",
        f"             of segment {result['segment']}, {'sealed' if result['sealed'] else 'not sealed yet'}",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Checks a TruthDB inclusion proof.")
    parser.add_argument("proof", help="file with the proof, - for standard input")
    parser.add_argument("--chain", metavar="HEX", help="the chain hash that you trust; must be the proof's")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        if arguments.proof == "-":
            proof = json.load(sys.stdin)
        else:
            with open(arguments.proof, encoding="utf-8") as file:
                proof = json.load(file)
    except (OSError, ValueError) as error:
        print(f"verify_proof: cannot read {arguments.proof}: {error}", file=sys.stderr)
        return 2
    try:
        result = verify(proof)
        if arguments.chain is not None:
            trusted = arguments.chain.strip().lower()
            require(trusted == result["chain"],
                    f"the proof leads to the chain hash {result['chain']}, you trust {trusted}")
    except BadProof as error:
        print(f"The proof does NOT hold: {error}", file=sys.stderr)
        return 1
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error, struct.error) as error:
        print(f"The proof does NOT hold: it is malformed ({type(error).__name__}: {error})", file=sys.stderr)
        return 1
    if arguments.json:
        event = dict(result["event"], payload=base64.b64encode(result["event"]["payload"]).decode())
        print(json.dumps(dict(result, event=event), indent=2))
    else:
        print(describe(result))
        if arguments.chain is None:
            print("Compare the chain hash with one that you trust, or give it with --chain.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
