//! Native guests of the simulation: quick, and wrong on purpose.

use std::sync::Arc;

use truthdb_compute::{FoldTables, Guest, NativeCode, NativeRuntime};
use truthdb_module::{
    ABI_VERSION, Emit, EventColumns, Halt, InstanceContext, Manifest, ModuleKind, Processed,
    StateFault, StateRead as _, StateWrite as _, Subscription, TableDecl, TrapKind,
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
}

/// What some guests cannot bear.
pub(super) const BOOM: &[u8] = b"boom";
/// Type of the events that guests are given.
pub(super) const ORDER: &str = "order";
/// Type of the events that they derive.
pub(super) const ECHO: &str = "echoed";

/// The codes by the bytes that stand for them, each with the module's name.
pub(super) const CODES: [(&[u8], &str, Quirk); 7] = [
    (b"tally", "tally", Quirk::None),
    (b"tally, built again", "tally", Quirk::None),
    (b"tally twice", "tally", Quirk::Twice),
    (b"tally impure", "tally", Quirk::Impure),
    (b"tally traps", "tally", Quirk::Traps),
    (b"echo", "echo", Quirk::Emits),
    (b"echo, built again", "echo", Quirk::Emits),
];

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
            kind: if self.quirk == Quirk::Emits {
                ModuleKind::Processor
            } else {
                ModuleKind::Reducer
            },
            subscriptions: vec![Subscription {
                stream: "*".to_owned(),
                event_type: ORDER.to_owned(),
            }],
            tables: vec![table("counts"), table("last")],
        }
    }

    fn guest(&self, _context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(Tally {
            quirk: self.quirk,
            calls: 0,
        }))
    }
}

fn add(tables: &mut FoldTables, key: &[u8], by: u64) -> Result<(), StateFault> {
    let old = tables.get(0, key)?;
    let old = old
        .and_then(|old| old.try_into().ok())
        .map_or(0, u64::from_le_bytes);
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
