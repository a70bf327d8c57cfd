//! The host functions of the package `truthdb:module`, and what an instance carries for them.
//!
//! Every function checks lengths and table numbers, charges fuel for what it copies, and turns
//! whatever is wrong into a [`Halt`]; a guest never sees a failure of the host.

use std::mem;

use wasmtime::component::{Linker, WasmList};
use wasmtime::{ResourceLimiter, StoreContextMut};

use crate::instance::{Emit, LogLevel, LogLine};
use crate::wasi::Wasi;
use crate::{
    EMIT_NAME_BYTES_MAX, EMIT_PAYLOAD_BYTES_MAX, HOST_BYTE_FUEL, HOST_CALL_FUEL, HOST_ROW_FUEL,
    Halt, KEY_BYTES_MAX, KeyRange, Limits, MEMORIES_MAX, Page, REFERENCE_TABLES_MAX, StateFault,
    StateRead, StateWrite, VALUE_BYTES_MAX,
};

/// The tables that a call may reach.
#[derive(Default)]
pub(crate) enum Slot {
    #[default]
    Empty,
    Read(Box<dyn StateRead>),
    Write(Box<dyn StateWrite>),
}

impl Slot {
    fn read(&mut self) -> Result<&mut dyn StateRead, Halt> {
        match self {
            Self::Read(state) => Ok(&mut **state),
            Self::Write(state) => Ok(&mut **state),
            Self::Empty => Err(no_state()),
        }
    }

    fn write(&mut self) -> Result<&mut dyn StateWrite, Halt> {
        match self {
            Self::Write(state) => Ok(&mut **state),
            Self::Read(_) | Self::Empty => Err(no_state()),
        }
    }
}

/// Reads and writes belong into `process`, `validate`, `migrate` and `run`.
fn no_state() -> Halt {
    Halt::State(StateFault {
        reason: "this call has no tables (only process, validate, migrate and run have)".to_owned(),
    })
}

/// What a store holds: the tables and limits of the call, and what the call has produced.
pub(crate) struct Ctx {
    pub(crate) state: Slot,
    /// How many tables the manifest has.
    pub(crate) tables: u32,
    /// How many events the batch has.
    pub(crate) events: u32,
    pub(crate) limits: Limits,
    pub(crate) emits: Vec<Emit>,
    pub(crate) emit_bytes: u64,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) log_bytes: u32,
    pub(crate) log_bytes_dropped: u64,
    pub(crate) wasi: Wasi,
    memory_bytes: u64,
    /// Room for the key and the value of a call, so that most calls allocate nothing.
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Ctx {
    pub(crate) fn new(limits: Limits, wasi: Wasi) -> Self {
        Self {
            state: Slot::Empty,
            tables: 0,
            events: 0,
            limits,
            emits: Vec::new(),
            emit_bytes: 0,
            logs: Vec::new(),
            log_bytes: 0,
            log_bytes_dropped: 0,
            wasi,
            memory_bytes: 0,
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    fn check_table(&self, table: u32) -> Result<(), Halt> {
        if table < self.tables {
            return Ok(());
        }
        Err(Halt::UnknownTable {
            table,
            tables: self.tables,
        })
    }

    /// Keeps a message, cut at what is left of the call's allowance.
    pub(crate) fn log(&mut self, level: LogLevel, message: &str) {
        let room = self
            .limits
            .log_bytes_per_call
            .saturating_sub(self.log_bytes) as usize;
        let mut end = message.len().min(room);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.log_bytes_dropped += (message.len() - end) as u64;
        if end == 0 {
            return;
        }
        self.log_bytes += u32::try_from(end).unwrap_or(u32::MAX);
        self.logs.push(LogLine {
            level,
            message: message[..end].to_owned(),
        });
    }
}

impl ResourceLimiter for Ctx {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes + (desired.saturating_sub(current)) as u64;
        if total > self.limits.memory_bytes {
            return Err(over("memory_bytes", self.limits.memory_bytes, total).into());
        }
        // Beyond the memory's own declared maximum the guest is told -1, which it can foresee.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(Halt::Environment {
            call: "memory.grow",
            reason: format!("{error:#}"),
        }
        .into())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let max = u64::from(self.limits.table_elements);
        if desired as u64 > max {
            return Err(over("table_elements", max, desired as u64).into());
        }
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(Halt::Environment {
            call: "table.grow",
            reason: format!("{error:#}"),
        }
        .into())
    }

    fn instances(&self) -> usize {
        // Shims, adapters and the main module each are one.
        64
    }

    fn tables(&self) -> usize {
        REFERENCE_TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}

pub(crate) fn over(limit: &'static str, max: u64, asked: u64) -> Halt {
    Halt::Limit { limit, max, asked }
}

fn check(limit: &'static str, max: usize, asked: usize) -> Result<(), Halt> {
    if asked > max {
        return Err(over(limit, max as u64, asked as u64));
    }
    Ok(())
}

type Caller<'a> = StoreContextMut<'a, Ctx>;

/// Takes the fuel for a host call that copies so many bytes and visits so many rows.
pub(crate) fn charge(store: &mut Caller<'_>, bytes: usize, rows: u64) -> wasmtime::Result<()> {
    let cost = HOST_CALL_FUEL + HOST_BYTE_FUEL * bytes as u64 + HOST_ROW_FUEL * rows;
    let left = store.get_fuel()?;
    store.set_fuel(left.saturating_sub(cost))?;
    if left < cost {
        return Err(Halt::OutOfFuel { call: "", fuel: 0 }.into());
    }
    Ok(())
}

/// Copies a list of the guest into a buffer of the host.
fn copy_in(
    store: &Caller<'_>,
    list: &WasmList<u8>,
    into: &mut Vec<u8>,
    limit: &'static str,
    max: usize,
) -> Result<(), Halt> {
    check(limit, max, list.len())?;
    into.clear();
    into.extend_from_slice(list.as_le_slice(store));
    Ok(())
}

/// Defines one interface of `truthdb:module`, under the full name by which the guest imports it.
/// The answer is whether there is such an interface.
pub(crate) fn link(
    linker: &mut Linker<Ctx>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<bool> {
    match interface {
        "types" => {
            linker.instance(name)?;
        }
        "log" => link_log(linker, name)?,
        "state-read" => link_state_read(linker, name)?,
        "state-write" => link_state_write(linker, name)?,
        "emit" => link_emit(linker, name)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn link_log(linker: &mut Linker<Ctx>, name: &str) -> wasmtime::Result<()> {
    linker.instance(name)?.func_wrap(
        "write",
        |mut store: Caller<'_>, (level, message): (LogLevel, String)| {
            charge(&mut store, message.len(), 0)?;
            store.data_mut().log(level, &message);
            Ok(())
        },
    )
}

fn link_state_read(linker: &mut Linker<Ctx>, name: &str) -> wasmtime::Result<()> {
    let mut interface = linker.instance(name)?;
    interface.func_wrap(
        "get",
        |mut store: Caller<'_>, (table, key): (u32, WasmList<u8>)| {
            let value = with_key(&mut store, table, &key, |state, key| {
                Ok(state.read()?.get(table, key)?)
            })?;
            let bytes = value.as_ref().map_or(0, Vec::len);
            charge(&mut store, key.len() + bytes, 1)?;
            Ok((value,))
        },
    )?;
    interface.func_wrap(
        "scan",
        |mut store: Caller<'_>, (table, range, limit, reverse): (u32, KeyRange, u32, bool)| {
            let ctx = store.data_mut();
            ctx.check_table(table)?;
            check_range(&range)?;
            let page: Page = ctx
                .state
                .read()?
                .scan(table, &range, limit, reverse)
                .map_err(Halt::from)?;
            charge(&mut store, page.data.len(), page.len() as u64)?;
            Ok((page,))
        },
    )
}

fn link_state_write(linker: &mut Linker<Ctx>, name: &str) -> wasmtime::Result<()> {
    let mut interface = linker.instance(name)?;
    interface.func_wrap(
        "set",
        |mut store: Caller<'_>, (table, key, value): (u32, WasmList<u8>, WasmList<u8>)| {
            charge(&mut store, key.len() + value.len(), 1)?;
            let mut room = mem::take(&mut store.data_mut().value);
            copy_in(
                &store,
                &value,
                &mut room,
                "VALUE_BYTES_MAX",
                VALUE_BYTES_MAX,
            )?;
            with_key(&mut store, table, &key, |state, key| {
                Ok(state.write()?.set(table, key, &room)?)
            })?;
            store.data_mut().value = room;
            Ok(())
        },
    )?;
    interface.func_wrap(
        "delete",
        |mut store: Caller<'_>, (table, key): (u32, WasmList<u8>)| {
            charge(&mut store, key.len(), 1)?;
            let was_there = with_key(&mut store, table, &key, |state, key| {
                Ok(state.write()?.delete(table, key)?)
            })?;
            Ok((was_there,))
        },
    )?;
    interface.func_wrap(
        "delete-range",
        |mut store: Caller<'_>, (table, range): (u32, KeyRange)| {
            let ctx = store.data_mut();
            ctx.check_table(table)?;
            check_range(&range)?;
            let rows = ctx
                .state
                .write()?
                .delete_range(table, &range)
                .map_err(Halt::from)?;
            charge(&mut store, 0, rows)?;
            Ok((rows,))
        },
    )
}

/// Runs an operation with a key of the guest.
fn with_key<T>(
    store: &mut Caller<'_>,
    table: u32,
    key: &WasmList<u8>,
    operation: impl FnOnce(&mut Slot, &[u8]) -> Result<T, Halt>,
) -> Result<T, Halt> {
    store.data().check_table(table)?;
    let mut room = mem::take(&mut store.data_mut().key);
    copy_in(store, key, &mut room, "KEY_BYTES_MAX", KEY_BYTES_MAX)?;
    let ctx = store.data_mut();
    let result = operation(&mut ctx.state, &room);
    ctx.key = room;
    result
}

fn check_range(range: &KeyRange) -> Result<(), Halt> {
    check("KEY_BYTES_MAX", KEY_BYTES_MAX, range.start.len())?;
    let end_bytes = range.end.as_ref().map_or(0, Vec::len);
    check("KEY_BYTES_MAX", KEY_BYTES_MAX, end_bytes)
}

fn link_emit(linker: &mut Linker<Ctx>, name: &str) -> wasmtime::Result<()> {
    linker.instance(name)?.func_wrap(
        "emit",
        |mut store: Caller<'_>,
         (source, stream, event_type, content_type, payload): (
            u32,
            String,
            String,
            String,
            Vec<u8>,
        )| {
            let emit = Emit {
                source,
                stream,
                event_type,
                content_type,
                payload,
            };
            charge(&mut store, emit.bytes(), 1)?;
            take_emit(store.data_mut(), emit)?;
            Ok(())
        },
    )
}

fn take_emit(ctx: &mut Ctx, emit: Emit) -> Result<(), Halt> {
    if !matches!(ctx.state, Slot::Write(_)) || emit.source >= ctx.events {
        return Err(Halt::BadAnswer {
            call: "emit",
            reason: format!(
                "source is event {} of a batch of {}",
                emit.source, ctx.events
            ),
        });
    }
    for name in [&emit.stream, &emit.event_type, &emit.content_type] {
        check("EMIT_NAME_BYTES_MAX", EMIT_NAME_BYTES_MAX, name.len())?;
    }
    let unnamed = emit.stream.is_empty() || emit.event_type.is_empty();
    let has_control = [&emit.stream, &emit.event_type, &emit.content_type]
        .iter()
        .any(|name| name.chars().any(char::is_control));
    if unnamed || has_control || emit.stream.starts_with('$') {
        return Err(Halt::BadAnswer {
            call: "emit",
            reason: format!(
                "stream {:?} and type {:?} must be names without control characters, and a stream \
                 that begins with `$` belongs to the database",
                emit.stream, emit.event_type
            ),
        });
    }
    check(
        "EMIT_PAYLOAD_BYTES_MAX",
        EMIT_PAYLOAD_BYTES_MAX,
        emit.payload.len(),
    )?;
    let max = ctx.limits.emits_per_call;
    if ctx.emits.len() >= max as usize {
        return Err(over("emits_per_call", u64::from(max), u64::from(max) + 1));
    }
    ctx.emit_bytes += emit.bytes() as u64;
    if ctx.emit_bytes > ctx.limits.emit_bytes_per_call {
        let max = ctx.limits.emit_bytes_per_call;
        return Err(over("emit_bytes_per_call", max, ctx.emit_bytes));
    }
    ctx.emits.push(emit);
    Ok(())
}
