//! Tables beside `std::collections::BTreeMap`: get, upsert, scan, memory, in one run.
//!
//! `cargo run --profile fast -p truthdb-state --example tables [rounds]`. Random 16-byte keys, 32-byte
//! values; every line is the median of the rounds with the fastest and the slowest one, and the
//! contenders take turns within a round. Times are of the processor, not of the wall.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a program for measuring"
)]

use std::collections::BTreeMap;
use std::hint::black_box;

use truthdb_state::{Fingerprint, Tables, View};

const KEYS: u64 = 632_000;
const OPS: u64 = 200_000;
/// Commits between two retained views, and how many views are kept.
const VIEW_COMMITS: u64 = 1000;
const VIEWS_KEPT: usize = 16;

struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Key of a number: 16 bytes without order.
fn key(n: u64) -> [u8; 16] {
    let mut random = Random(n);
    let (a, b) = (random.draw().to_le_bytes(), random.draw().to_le_bytes());
    let mut key = [0; 16];
    key[..8].copy_from_slice(&a);
    key[8..].copy_from_slice(&b);
    key
}

fn value(n: u64) -> [u8; 32] {
    let mut value = [7; 32];
    value[..8].copy_from_slice(&n.to_le_bytes());
    value
}

/// Time that this thread has had a processor, in nanoseconds: what others do to the machine is not
/// counted, except for the caches they share.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

struct Lines {
    names: Vec<&'static str>,
    ns: Vec<Vec<f64>>,
}

impl Lines {
    fn measure(&mut self, name: &'static str, ops: u64, work: impl FnOnce()) {
        let start = cpu_ns();
        work();
        let ns = (cpu_ns() - start) as f64 / ops as f64;
        match self.names.iter().position(|known| *known == name) {
            Some(at) => self.ns[at].push(ns),
            None => {
                self.names.push(name);
                self.ns.push(vec![ns]);
            }
        }
    }
}

fn filled() -> (BTreeMap<Vec<u8>, Vec<u8>>, Tables) {
    let mut map = BTreeMap::new();
    let mut tables = Tables::new(1);
    for n in 0..KEYS {
        if n % 1000 == 0 {
            if n > 0 {
                tables.commit();
            }
            tables.begin();
        }
        map.insert(key(n).to_vec(), value(n).to_vec());
        tables.set(0, &key(n), &value(n)).unwrap();
    }
    tables.commit();
    (map, tables)
}

fn upserts(tables: &mut Tables, random: &mut Random, batch: u64, views: bool) {
    let mut kept: Vec<View> = Vec::new();
    for n in 0..OPS / batch {
        tables.begin();
        for _ in 0..batch {
            let (n, v) = (random.draw() % KEYS, random.draw());
            tables.set(0, &key(n), &value(v)).unwrap();
        }
        black_box(tables.commit());
        if views && (n * batch).is_multiple_of(VIEW_COMMITS) {
            kept.push(tables.view());
            if kept.len() > VIEWS_KEPT {
                kept.remove(0);
            }
        }
    }
}

fn round(lines: &mut Lines, map: &mut BTreeMap<Vec<u8>, Vec<u8>>, tables: &mut Tables, seed: u64) {
    let mut random = Random(seed);
    lines.measure("get · BTreeMap", OPS, || {
        for _ in 0..OPS {
            black_box(map.get(&key(random.draw() % KEYS)[..]));
        }
    });
    lines.measure("get · Tables", OPS, || {
        for _ in 0..OPS {
            black_box(tables.get(0, &key(random.draw() % KEYS)));
        }
    });
    lines.measure("upsert · BTreeMap, no fingerprint", OPS, || {
        for _ in 0..OPS {
            let (n, v) = (random.draw() % KEYS, random.draw());
            black_box(map.insert(key(n).to_vec(), value(v).to_vec()));
        }
    });
    lines.measure("upsert · BTreeMap and row hashes", OPS, || {
        let mut sum = Fingerprint::EMPTY;
        for _ in 0..OPS {
            let (n, v) = (random.draw() % KEYS, random.draw());
            let old = map.insert(key(n).to_vec(), value(v).to_vec()).unwrap();
            sum.subtract(Fingerprint::of_row(0, &key(n), &old));
            sum.add(Fingerprint::of_row(0, &key(n), &value(v)));
        }
        black_box(sum);
    });
    lines.measure("upsert · Tables, batches of 1, no view", OPS, || {
        upserts(tables, &mut random, 1, false);
    });
    lines.measure(
        "upsert · Tables, batches of 1, a view every 1000",
        OPS,
        || {
            upserts(tables, &mut random, 1, true);
        },
    );
    lines.measure("upsert · Tables, batches of 1000, no view", OPS, || {
        upserts(tables, &mut random, 1000, false);
    });
    lines.measure(
        "upsert · Tables, batches of 1000, a view each",
        OPS,
        || {
            upserts(tables, &mut random, 1000, true);
        },
    );
    lines.measure("two row hashes", OPS, || {
        for n in 0..OPS {
            black_box(Fingerprint::of_row(0, &key(n), &value(n)));
            black_box(Fingerprint::of_row(0, &key(n), &value(n + 1)));
        }
    });
    lines.measure("scan a row · BTreeMap", KEYS, || {
        for (key, value) in map.iter() {
            black_box((key, value));
        }
    });
    lines.measure("scan a row · Tables", KEYS, || {
        tables.scan(0, b"", None, u64::MAX, false, &mut |key, value| {
            black_box((key, value));
            true
        });
    });
    lines.measure("scan a row backward · Tables", KEYS, || {
        tables.scan(0, b"", None, u64::MAX, true, &mut |key, value| {
            black_box((key, value));
            true
        });
    });
    diffs(lines, tables, &mut random);
}

fn diffs(lines: &mut Lines, tables: &mut Tables, random: &mut Random) {
    const CHANGES: u64 = 1000;
    let before = tables.view();
    tables.begin();
    for _ in 0..CHANGES {
        let (n, v) = (random.draw() % KEYS, random.draw());
        tables.set(0, &key(n), &value(v)).unwrap();
    }
    tables.commit();
    let after = tables.view();
    lines.measure("diff of two views, a row of 1000 changed", CHANGES, || {
        black_box(before.diff(&after).unwrap());
    });
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(7, |n| n.parse().unwrap());
    let (mut map, mut tables) = filled();
    let mut lines = Lines {
        names: Vec::new(),
        ns: Vec::new(),
    };
    for seed in 0..rounds {
        round(&mut lines, &mut map, &mut tables, seed);
    }
    println!(
        "{KEYS} rows, {} bytes, {} bytes of memory",
        tables.bytes(),
        tables.memory_bytes()
    );
    println!("{:<52} {:>8} {:>8} {:>8}", "ns", "median", "min", "max");
    for (name, mut ns) in lines.names.into_iter().zip(lines.ns) {
        ns.sort_by(f64::total_cmp);
        let (median, min, max) = (ns[ns.len() / 2], ns[0], ns[ns.len() - 1]);
        println!("{name:<52} {median:>8.0} {min:>8.0} {max:>8.0}");
    }
}
