// Balances of accounts, in JavaScript: see ../README.md for what it does.

import { get, scan } from "truthdb:module/state-read@0.1.0";
import { set, delete as remove } from "truthdb:module/state-write@0.1.0";
import { emit } from "truthdb:module/emit@0.1.0";

const [DEPOSIT, WITHDRAW, CLOSE, AUDIT] = [0, 1, 2, 3];
const [ACCOUNTS, TOTALS] = [0, 1];
/** Parts of an event: stream, type, id, metadata, payload. */
const PARTS = 5;

const decoder = new TextDecoder();
const encoder = new TextEncoder();

export function describe() {
  return {
    name: "balance",
    version: "0.1.0",
    abi: 1,
    kind: "processor",
    subscriptions: [
      { stream: "account-*", eventType: "deposit" },
      { stream: "account-*", eventType: "withdraw" },
      { stream: "account-*", eventType: "close" },
      { stream: "audit", eventType: "run" },
    ],
    tables: [
      { name: "accounts", version: 1, module: "" },
      { name: "totals", version: 1, module: "" },
    ],
  };
}

export function process(batch) {
  for (let event = 0; event < batch.sequences.length; event++) {
    const stream = decoder.decode(part(batch, event, 0));
    const payload = decoder.decode(part(batch, event, 4));
    switch (batch.kinds[event]) {
      case DEPOSIT:
        moveBy(event, stream, parse(payload));
        break;
      case WITHDRAW:
        moveBy(event, stream, -parse(payload));
        break;
      case CLOSE:
        if (!remove(ACCOUNTS, keyOf(stream))) throw `${stream} is not open`;
        break;
      case AUDIT:
        audit();
        break;
      default:
        throw "the host gave an event of no handler";
    }
  }
}

export function migrate(_previous) {}

function part(batch, event, index) {
  const at = event * PARTS + index;
  return batch.data.subarray(at === 0 ? 0 : batch.ends[at - 1], batch.ends[at]);
}

function parse(text) {
  if (!/^[0-9]+$/.test(text) || BigInt(text) > 0xffffffffn) throw `${text} is no amount`;
  return BigInt(text);
}

/** Names of streams hold no control characters, so none of their bytes is 0. */
function keyOf(name) {
  return encoder.encode(`${name}\0\0`);
}

function moveBy(source, name, amount) {
  const key = keyOf(name);
  const old = get(ACCOUNTS, key);
  let balance = 0n;
  let movements = 0;
  if (old !== undefined) {
    const view = viewOf(old);
    balance = view.getBigInt64(0, true);
    movements = view.getUint32(8, true);
  }
  balance += amount;
  const value = new DataView(new ArrayBuffer(12));
  value.setBigInt64(0, balance, true);
  value.setUint32(8, movements + 1, true);
  set(ACCOUNTS, key, bytesOf(value));
  if (balance < 0n) {
    emit(source, "alerts", "overdrawn", "text/plain", encoder.encode(`${name} ${balance}`));
  }
}

function audit() {
  let accounts = 0n;
  let sum = 0n;
  let start = new Uint8Array(0);
  let rows;
  do {
    rows = scan(ACCOUNTS, { start, end: undefined }, 100, false);
    const view = viewOf(rows.data);
    for (let row = 0; row < rows.ends.length; row += 2) {
      const begin = row === 0 ? 0 : rows.ends[row - 1];
      accounts += 1n;
      sum += view.getBigInt64(rows.ends[row], true);
      // The next page begins right after this key.
      start = new Uint8Array(rows.ends[row] - begin + 1);
      start.set(rows.data.subarray(begin, rows.ends[row]));
    }
  } while (rows.more);
  const value = new DataView(new ArrayBuffer(24));
  value.setBigUint64(0, accounts, true);
  value.setBigInt64(8, sum, true);
  value.setFloat64(16, accounts > 0n ? Number(sum) / Number(accounts) : 0, true);
  set(TOTALS, new Uint8Array(0), bytesOf(value));
}

function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function bytesOf(view) {
  return new Uint8Array(view.buffer);
}
