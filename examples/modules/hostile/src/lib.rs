//! What modules must not do, on request: the type of an event says what. The host's tests show that
//! each is contained and named. The module also keeps a global, which no fresh instance may remember.

use std::sync::atomic::{AtomicU64, Ordering};

use truthdb_sdk::prelude::*;

static CALLS: AtomicU64 = AtomicU64::new(0);

truthdb_sdk::processor! {
    /// Does what it is told.
    pub Hostile = "hostile";
    tables {
        notes: Table<String, u64> = 1,
    }
    on "hostile" / "note" (String) => note;
    on "hostile" / "impure" (String) => impure;
    on "hostile" / "*" (String) => misbehave;
}

/// Well-behaved, so that tests can see what a rolled back batch leaves.
fn note(tables: &Tables, _: &Event<'_>, key: String, _: &mut Emitter) -> Result<(), Fault> {
    tables
        .notes
        .update(&key, |count| Some(count.unwrap_or(0) + 1));
    Ok(())
}

/// Counts its own calls in a global, and lets the count into its table.
fn impure(tables: &Tables, _: &Event<'_>, key: String, _: &mut Emitter) -> Result<(), Fault> {
    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    tables.notes.set(&key, &calls);
    Ok(())
}

fn misbehave(
    tables: &Tables,
    event: &Event<'_>,
    text: String,
    out: &mut Emitter,
) -> Result<(), Fault> {
    let number: usize = text.parse().unwrap_or(0);
    log(Level::Warn, &format!("about to {}", event.event_type()));
    match event.event_type() {
        "error" => return Err(Fault::new(text)),
        "panic" => panic!("as told"),
        "loop" => loop {
            std::hint::black_box(&text);
        },
        "recurse" => {
            let depth = recurse(std::hint::black_box(u64::MAX), [1; 16]);
            tables.notes.set(&text, &depth);
        }
        "eat" => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        "grab" => {
            let grabbed = std::hint::black_box(vec![1u8; number]);
            tables.notes.set(&text, &(grabbed.len() as u64));
        }
        "long-key" => tables.notes.set(&"k".repeat(number), &1),
        "unknown-table" => Table::<(), ()>::at(99).set(&(), &()),
        "emit" => {
            for _ in 0..number {
                out.emit("derived", "made", "", b"x");
            }
        }
        "emit-system" => out.emit("$module/hostile", "activated", "", b""),
        "emit-nameless" => out.emit("", "made", "", b""),
        "chatter" => {
            for _ in 0..number {
                log(Level::Info, "blah blah blah blah");
            }
        }
        other => return Err(Fault::new(format!("it does not know how to {other}"))),
    }
    Ok(())
}

#[inline(never)]
fn recurse(depth: u64, padding: [u64; 16]) -> u64 {
    if depth == 0 {
        return padding[3];
    }
    let mut padding = std::hint::black_box(padding);
    padding[(depth % 16) as usize] += depth;
    recurse(depth - 1, padding) + padding[7]
}
