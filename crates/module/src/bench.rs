//! The micro benchmark of the fold: the same work by a guest and as native code, on the same tables.
//!
//! It holds no clock: the caller gives one, and prints. [`MapTables`] stands in for real tables where
//! none are at hand.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::{
    ColumnEvent, EventColumns, Halt, Instance, KeyRange, PAGE_BYTES_MAX, Page, StateFault,
    StateRead, StateWrite,
};

/// Tables as one ordered map: for tests and benchmarks, without versions and without rollback.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapTables {
    /// Values by table and key.
    pub rows: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
}

type RowBound = Bound<(u32, Vec<u8>)>;

/// A range of one table; `None` if it is empty.
fn bounds(table: u32, range: &KeyRange) -> Option<(RowBound, RowBound)> {
    let end = match &range.end {
        Some(end) if *end <= range.start => return None,
        Some(end) => Bound::Excluded((table, end.clone())),
        None => table
            .checked_add(1)
            .map_or(Bound::Unbounded, |next| Bound::Excluded((next, Vec::new()))),
    };
    Some((Bound::Included((table, range.start.clone())), end))
}

impl StateRead for MapTables {
    fn get(&mut self, table: u32, key: &[u8]) -> Result<Option<Vec<u8>>, StateFault> {
        Ok(self.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &mut self,
        table: u32,
        range: &KeyRange,
        limit: u32,
        reverse: bool,
    ) -> Result<Page, StateFault> {
        let mut page = Page::default();
        let Some(bounds) = bounds(table, range) else {
            return Ok(page);
        };
        let mut rows = self.rows.range(bounds);
        while let Some(((_, key), value)) = if reverse {
            rows.next_back()
        } else {
            rows.next()
        } {
            let bytes = page.data.len() + key.len() + value.len();
            let is_full = bytes > PAGE_BYTES_MAX && !page.is_empty();
            if page.len() >= limit as usize || is_full {
                page.more = true;
                break;
            }
            page.push(key, value);
        }
        Ok(page)
    }
}

impl StateWrite for MapTables {
    fn set(&mut self, table: u32, key: &[u8], value: &[u8]) -> Result<(), StateFault> {
        self.rows.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: u32, key: &[u8]) -> Result<bool, StateFault> {
        Ok(self.rows.remove(&(table, key.to_vec())).is_some())
    }

    fn delete_range(&mut self, table: u32, range: &KeyRange) -> Result<u64, StateFault> {
        let Some(bounds) = bounds(table, range) else {
            return Ok(0);
        };
        let keys: Vec<_> = self
            .rows
            .range(bounds)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            self.rows.remove(key);
        }
        Ok(keys.len() as u64)
    }
}

/// What the benchmark folds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// JSON-like payloads, two fields of which are summed; one read and one write a batch. The guest
    /// is `examples/modules/tally`.
    Tally,
    /// A random account of so many gets a deposit: one read and one write an event. The guest is
    /// `examples/modules/balance`.
    Balance {
        /// How many accounts there are.
        accounts: u32,
    },
}

/// Batches to be folded, made once. Equal for equal arguments.
#[derive(Debug)]
pub struct FoldBench {
    workload: Workload,
    batches: Vec<Arc<EventColumns>>,
    events: u64,
}

/// Nanoseconds that each way took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldTimes {
    /// Events folded, each way.
    pub events: u64,
    /// By the guest.
    pub guest_ns: u64,
    /// By native code.
    pub native_ns: u64,
    /// Fuel that the guest used.
    pub fuel: u64,
}

impl FoldBench {
    /// Makes batches of `batch_events` each.
    pub fn new(workload: Workload, batches: u64, batch_events: u64) -> Self {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut sequence = 0;
        let make = |_| {
            let mut columns = EventColumns::default();
            for _ in 0..batch_events {
                sequence += 1;
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                push(&mut columns, workload, sequence, random);
            }
            Arc::new(columns)
        };
        Self {
            workload,
            batches: (0..batches).map(make).collect(),
            events: batches * batch_events,
        }
    }

    /// Folds all batches by the guest, then natively, each into tables of its own.
    ///
    /// # Errors
    ///
    /// What the guest or the tables say.
    pub fn run<S: StateWrite>(
        &self,
        instance: &mut Instance,
        guest_tables: Box<S>,
        native_tables: Box<S>,
        now_ns: &dyn Fn() -> u64,
    ) -> (Box<S>, Box<S>, Result<FoldTimes, Halt>) {
        let started = now_ns();
        let (guest_tables, fuel) = self.fold_by_guest(instance, guest_tables);
        let between = now_ns();
        let mut native_tables = native_tables;
        let native = self.fold_natively(&mut *native_tables);
        let ended = now_ns();
        let times = fuel.and_then(|fuel| {
            native.map_err(Halt::from)?;
            Ok(FoldTimes {
                events: self.events,
                guest_ns: between.saturating_sub(started),
                native_ns: ended.saturating_sub(between),
                fuel,
            })
        });
        (guest_tables, native_tables, times)
    }

    /// Folds all batches by the guest; the answer is its fuel.
    fn fold_by_guest<S: StateWrite>(
        &self,
        instance: &mut Instance,
        mut tables: Box<S>,
    ) -> (Box<S>, Result<u64, Halt>) {
        let mut fuel = 0;
        for batch in &self.batches {
            let (back, result) = instance.process(tables, batch);
            tables = back;
            match result {
                Ok(processed) => fuel += processed.fuel,
                Err(halt) => return (tables, Err(halt)),
            }
        }
        (tables, Ok(fuel))
    }

    /// The guests' fold as native code.
    fn fold_natively(&self, tables: &mut dyn StateWrite) -> Result<(), StateFault> {
        for batch in &self.batches {
            self.workload.fold_natively(tables, batch)?;
        }
        Ok(())
    }
}

impl Workload {
    /// The guest's fold of one batch, as native code. The guest's table 0 is table 0 here.
    ///
    /// # Errors
    ///
    /// What the tables say.
    pub fn fold_natively(
        self,
        tables: &mut dyn StateWrite,
        batch: &EventColumns,
    ) -> Result<(), StateFault> {
        match self {
            Workload::Tally => tally(tables, batch),
            Workload::Balance { .. } => balance(tables, batch),
        }
    }

    /// Stream, type and payload of the event that a random number stands for.
    pub fn event(self, random: u64) -> (String, &'static str, String) {
        let amount = random >> 48;
        match self {
            Workload::Tally => (
                "scale".to_owned(),
                "measured",
                format!(
                    "{{\"id\":\"{random:016x}\",\"place\":\"north\",\"amount\":{amount},\"unit\":\"g\",\
                     \"weight\":{},\"by\":\"operator-{}\",\"note\":\"\"}}",
                    amount % 1000,
                    amount % 100
                ),
            ),
            Workload::Balance { accounts } => (
                format!("account-{}", random % u64::from(accounts.max(1))),
                "deposit",
                amount.to_string(),
            ),
        }
    }
}

fn push(columns: &mut EventColumns, workload: Workload, sequence: u64, random: u64) {
    let (stream, event_type, payload) = workload.event(random);
    columns.push(&ColumnEvent {
        sequence,
        time: sequence * 1000,
        revision: 0,
        kind: 0,
        stream: &stream,
        event_type,
        id: [0; 16],
        metadata: b"",
        payload: payload.as_bytes(),
    });
}

fn tally(tables: &mut dyn StateWrite, batch: &EventColumns) -> Result<(), StateFault> {
    let old = tables.get(0, b"")?.unwrap_or_else(|| vec![0; 24]);
    let word = |at: usize| {
        old.get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let (mut events, mut amount, mut weight) = (word(0), word(8), f64::from_bits(word(16)));
    for index in 0..batch.len() {
        let Some(event) = batch.get(index) else { break };
        events += 1;
        amount = amount.wrapping_add(u64::from(field(event.payload, b"\"amount\":")));
        let half = f64::from(field(event.payload, b"\"weight\":")) / 2.0;
        weight += half * half;
    }
    let mut new = Vec::with_capacity(24);
    new.extend_from_slice(&events.to_le_bytes());
    new.extend_from_slice(&amount.to_le_bytes());
    new.extend_from_slice(&weight.to_le_bytes());
    tables.set(0, b"", &new)
}

fn field(payload: &[u8], name: &[u8]) -> u32 {
    let at = payload
        .windows(name.len())
        .position(|window| window == name);
    let digits = at.map_or(&[][..], |at| &payload[at + name.len()..]);
    digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0u32, |number, &digit| {
            number
                .wrapping_mul(10)
                .wrapping_add(u32::from(digit - b'0'))
        })
}

fn balance(tables: &mut dyn StateWrite, batch: &EventColumns) -> Result<(), StateFault> {
    for index in 0..batch.len() {
        let Some(event) = batch.get(index) else { break };
        let mut key = event.stream.as_bytes().to_vec();
        key.extend_from_slice(&[0, 0]);
        let old = tables.get(0, &key)?.unwrap_or_else(|| vec![0; 12]);
        let sum = old.first_chunk::<8>().map_or(0, |b| i64::from_le_bytes(*b));
        let movements = old.last_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
        let amount = std::str::from_utf8(event.payload)
            .ok()
            .and_then(|text| text.parse::<u32>().ok())
            .unwrap_or_default();
        let mut new = Vec::with_capacity(12);
        new.extend_from_slice(&(sum + i64::from(amount)).to_le_bytes());
        new.extend_from_slice(&(movements + 1).to_le_bytes());
        tables.set(0, &key, &new)?;
    }
    Ok(())
}
