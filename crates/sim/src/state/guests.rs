//! Native guests of the simulation: quick, and wrong on purpose.

use std::sync::Arc;

use truthdb_compute::{FoldTables, Guest, NativeCode, NativeRuntime, ReadTables};
use truthdb_module::{
    ABI_VERSION, Answer, Emit, EventColumns, Halt, InstanceContext, Manifest, ModuleKind, Moment,
    Page, Processed, Rejection, StateFault, StateRead as _, StateWrite as _, Subscription,
    TableDecl, TrapKind, Verdict,
};

/// What a module does besides counting events by type and keeping each stream's last payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quirk {
    None,
    /// Counts each event twice.
    Twice,
    /// Writes down how often its guest was called.
    Impure,
    /// Traps at a payload [`BOOM`].
    Traps,
    /// Emits an event for each.
    Emits,
    /// A validator: refuses orders in guarded streams at some counts of `tally`.
    Guards,
    /// A query: how much `tally` counts in all partitions, so many times.
    Sums(u64),
}

/// What some guests cannot bear.
pub(super) const BOOM: &[u8] = b"boom";
/// Type of the events that guests are given.
pub(super) const ORDER: &str = "order";
/// Type of the events that they derive.
pub(super) const ECHO: &str = "echoed";

/// The codes by the bytes that stand for them, each with the module's name.
pub(super) const CODES: [(&[u8], &str, Quirk); 11] = [
    (b"tally", "tally", Quirk::None),
    (b"tally, built again", "tally", Quirk::None),
    (b"tally twice", "tally", Quirk::Twice),
    (b"tally impure", "tally", Quirk::Impure),
    (b"tally traps", "tally", Quirk::Traps),
    (b"echo", "echo", Quirk::Emits),
    (b"echo, built again", "echo", Quirk::Emits),
    (b"guard", "guard", Quirk::Guards),
    (b"guard, built again", "guard", Quirk::Guards),
    (b"sum", "sum", Quirk::Sums(1)),
    (b"sum, doubled", "sum", Quirk::Sums(2)),
];

/// Streams that begin so are guarded.
pub(super) const GUARDED: &str = "g";

/// Whether the validator refuses a guarded order when so many orders are counted.
pub(super) fn is_refused(count: u64) -> bool {
    count % 4 == 3
}

struct Code {
    name: &'static str,
    quirk: Quirk,
}

struct Tally {
    quirk: Quirk,
    calls: u64,
}

/// A runtime with all codes.
pub(super) fn runtime() -> NativeRuntime {
    CODES
        .into_iter()
        .fold(NativeRuntime::default(), |runtime, (bytes, name, quirk)| {
            runtime.with(bytes, Code { name, quirk })
        })
}

impl NativeCode for Code {
    fn manifest(&self) -> Manifest {
        let table = |name: &str| TableDecl {
            name: name.to_owned(),
            version: 1,
            module: String::new(),
        };
        Manifest {
            name: self.name.to_owned(),
            version: "1".to_owned(),
            abi: ABI_VERSION,
            kind: match self.quirk {
                Quirk::Emits => ModuleKind::Processor,
                Quirk::Guards => ModuleKind::Validator,
                Quirk::Sums(_) => ModuleKind::Query,
                _ => ModuleKind::Reducer,
            },
            subscriptions: match self.quirk {
                Quirk::Sums(_) => Vec::new(),
                Quirk::Guards => wants(&format!("{GUARDED}*")),
                _ => wants("*"),
            },
            tables: match self.quirk {
                Quirk::Guards | Quirk::Sums(_) => vec![TableDecl {
                    module: "tally".to_owned(),
                    ..table("counts")
                }],
                _ => vec![table("counts"), table("last")],
            },
        }
    }

    fn guest(&self, _context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(match self.quirk {
            Quirk::Guards => Box::new(Guard),
            Quirk::Sums(times) => Box::new(Sum(times)),
            quirk => Box::new(Tally { quirk, calls: 0 }),
        })
    }
}

fn wants(stream: &str) -> Vec<Subscription> {
    vec![Subscription {
        stream: stream.to_owned(),
        event_type: ORDER.to_owned(),
    }]
}

struct Guard;

impl Guest for Guard {
    /// A refusal says the sequence that its first event would have had, and the count that was seen.
    fn validate(
        &mut self,
        mut tables: Box<ReadTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<ReadTables>, Result<Vec<Verdict>, Halt>) {
        let count = match tables.get(0, ORDER.as_bytes()) {
            Ok(count) => number(count),
            Err(fault) => return (tables, Err(fault.into())),
        };
        let first = batch.get(0).map_or(0, |event| event.sequence);
        let verdict = if is_refused(count) {
            Verdict::Reject(Rejection {
                code: 1,
                message: format!("{first}:{count}"),
            })
        } else {
            Verdict::Accept
        };
        (tables, Ok(vec![verdict; batch.len()]))
    }
}

struct Sum(u64);

impl Guest for Sum {
    /// Two steps in each partition, so that the resumption is seen.
    fn run(
        &mut self,
        mut tables: Box<ReadTables>,
        _at: &Moment,
        arguments: &[u8],
        resume: &[u8],
    ) -> (Box<ReadTables>, Result<Answer, Halt>) {
        let mut answer = Answer::default();
        if resume.is_empty() {
            answer.rows.more = true;
            answer.resume = b"again".to_vec();
            return (tables, Ok(answer));
        }
        match tables.get(0, arguments) {
            Ok(count) => answer.rows.push(arguments, &number(count).to_le_bytes()),
            Err(fault) => return (tables, Err(fault.into())),
        }
        (tables, Ok(answer))
    }

    fn merge(&mut self, arguments: &[u8], parts: Vec<Page>) -> Result<Page, Halt> {
        let rows = parts.iter().flat_map(Page::rows);
        let sum: u64 = rows.map(|(_, value)| number(Some(value.to_vec()))).sum();
        let mut page = Page::default();
        page.push(arguments, &(sum * self.0).to_le_bytes());
        Ok(page)
    }
}

fn number(value: Option<Vec<u8>>) -> u64 {
    value
        .and_then(|value| value.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn add(tables: &mut FoldTables, key: &[u8], by: u64) -> Result<(), StateFault> {
    let old = number(tables.get(0, key)?);
    tables.set(0, key, &(old + by).to_le_bytes())
}

impl Tally {
    fn fold(&mut self, tables: &mut FoldTables, batch: &EventColumns) -> Result<Processed, Halt> {
        let mut processed = Processed::default();
        self.calls += 1;
        for (source, index) in (0u32..).zip(0..batch.len()) {
            let Some(event) = batch.get(index) else { break };
            add(
                tables,
                ORDER.as_bytes(),
                if self.quirk == Quirk::Twice { 2 } else { 1 },
            )?;
            tables.set(1, event.stream.as_bytes(), event.payload)?;
            if self.quirk == Quirk::Traps && event.payload == BOOM {
                return Err(Halt::Trap {
                    call: "process",
                    kind: TrapKind::Unreachable,
                });
            }
            if self.quirk == Quirk::Emits {
                processed.emits.push(Emit {
                    source,
                    stream: format!("echo-{}", event.stream),
                    event_type: ECHO.to_owned(),
                    content_type: String::new(),
                    payload: event.payload.to_vec(),
                });
            }
        }
        if self.quirk == Quirk::Impure {
            tables.set(0, b"calls", &self.calls.to_le_bytes())?;
        }
        Ok(processed)
    }
}

impl Guest for Tally {
    fn process(
        &mut self,
        mut tables: Box<FoldTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        let result = self.fold(&mut tables, batch);
        (tables, result)
    }
}
