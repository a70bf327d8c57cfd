//! The deterministic profile of WASI, preview 2: what a language's runtime needs to start, without a
//! world outside.
//!
//! Clocks show the time of the call's last event. Random numbers are a stream of BLAKE3 from the
//! instance's seed and the call's sequence. Standard output and error become messages. There are no
//! arguments, no environment, no input, no files, no sockets; what is never needed to start stops
//! the call and names itself.
//!
//! It waits for nothing: everything that can be polled is ready.

use wasmtime::StoreContextMut;
use wasmtime::component::{
    Component, ComponentType, Linker, LinkerInstance, Lower, Resource, ResourceType, types,
};

use crate::imports::{Ctx, charge, over};
use crate::{Halt, LogLevel};

/// Most random bytes of one call.
const RANDOM_BYTES_MAX: u64 = 64 * 1024;
/// Bytes that an output stream takes at once.
const WRITE_BYTES_MAX: u64 = 64 * 1024;
/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// Handles have no state of their own: their number says what they are.
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ANY: u32 = 0;

/// What a guest of the profile sees of the world.
pub(crate) struct Wasi {
    random: blake3::OutputReader,
    time: u64,
    /// Lines of standard output and error that have not ended.
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Wasi {
    /// For the profile *none*, where nothing can ask.
    pub(crate) fn none() -> Self {
        Self::at(&[0; 32], 0, 0)
    }

    /// At the making of an instance.
    pub(crate) fn at(seed: &[u8; 32], sequence: u64, time: u64) -> Self {
        Self {
            random: random(seed, sequence, b"instance"),
            time,
            out: Vec::new(),
            err: Vec::new(),
        }
    }

    /// At the beginning of a call.
    pub(crate) fn begin(&mut self, seed: &[u8; 32], sequence: u64, time: u64) {
        self.random = random(seed, sequence, b"call");
        self.time = time;
    }

    fn random_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn random(seed: &[u8; 32], sequence: u64, what: &[u8]) -> blake3::OutputReader {
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(&sequence.to_le_bytes());
    hasher.update(what);
    hasher.finalize_xof()
}

impl Ctx {
    /// Takes output of the guest, and passes on the lines that are complete.
    fn write(&mut self, stream: u32, bytes: &[u8]) {
        let room = self.limits.log_bytes_per_call as usize;
        let (level, buffer) = match stream {
            STDERR => (LogLevel::Warn, &mut self.wasi.err),
            _ => (LogLevel::Info, &mut self.wasi.out),
        };
        let kept = bytes.len().min(room.saturating_sub(buffer.len()));
        buffer.extend_from_slice(&bytes[..kept]);
        let Some(end) = buffer.iter().rposition(|&byte| byte == b'\n') else {
            self.log_bytes_dropped += (bytes.len() - kept) as u64;
            return;
        };
        let lines: Vec<u8> = buffer.drain(..=end).collect();
        self.log_bytes_dropped += (bytes.len() - kept) as u64;
        for line in String::from_utf8_lossy(&lines).lines() {
            self.log(level, line);
        }
    }

    /// Passes on what the guest wrote without ending the line.
    pub(crate) fn flush_wasi(&mut self) {
        for stream in [STDOUT, STDERR] {
            let is_empty = match stream {
                STDERR => self.wasi.err.is_empty(),
                _ => self.wasi.out.is_empty(),
            };
            if !is_empty {
                self.write(stream, b"\n");
            }
        }
        // A full buffer had no room for the end of its line.
        self.wasi.out.clear();
        self.wasi.err.clear();
    }
}

struct InputStream;
struct OutputStream;
struct IoError;
struct Pollable;
struct TerminalInput;
struct TerminalOutput;
struct Descriptor;
struct DirectoryEntries;

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "the contract has it; nothing here fails")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

type Caller<'a> = StoreContextMut<'a, Ctx>;
type Done = wasmtime::Result<()>;

/// Defines one interface of WASI, under the full name by which the component imports it. Functions
/// that are not given are defined too, and stop the call that uses them.
pub(crate) fn link(
    linker: &mut Linker<Ctx>,
    interface: &str,
    name: &str,
    component: &Component,
) -> Done {
    let mut instance = linker.instance(name)?;
    let given = &mut instance;
    match interface {
        "wasi:cli/environment" => environment(given)?,
        "wasi:cli/exit" => exit(given)?,
        "wasi:cli/stdin" => {
            given.func_wrap("get-stdin", |_: Caller<'_>, (): ()| {
                Ok((Resource::<InputStream>::new_own(ANY),))
            })?;
        }
        "wasi:cli/stdout" => output(given, "get-stdout", STDOUT)?,
        "wasi:cli/stderr" => output(given, "get-stderr", STDERR)?,
        "wasi:cli/terminal-input" => resource::<TerminalInput>(given, "terminal-input")?,
        "wasi:cli/terminal-output" => resource::<TerminalOutput>(given, "terminal-output")?,
        "wasi:cli/terminal-stdin" => no_terminal::<TerminalInput>(given, "get-terminal-stdin")?,
        "wasi:cli/terminal-stdout" => no_terminal::<TerminalOutput>(given, "get-terminal-stdout")?,
        "wasi:cli/terminal-stderr" => no_terminal::<TerminalOutput>(given, "get-terminal-stderr")?,
        "wasi:clocks/monotonic-clock" => monotonic_clock(given)?,
        "wasi:clocks/wall-clock" => wall_clock(given)?,
        "wasi:random/random" => random_numbers(given, "get-random-bytes", "get-random-u64")?,
        "wasi:random/insecure" => {
            random_numbers(
                given,
                "get-insecure-random-bytes",
                "get-insecure-random-u64",
            )?;
        }
        "wasi:random/insecure-seed" => {
            given.func_wrap("insecure-seed", |mut store: Caller<'_>, (): ()| {
                let wasi = &mut store.data_mut().wasi;
                Ok(((wasi.random_u64(), wasi.random_u64()),))
            })?;
        }
        "wasi:io/error" => {
            resource::<IoError>(given, "error")?;
            given.func_wrap(
                "[method]error.to-debug-string",
                |_: Caller<'_>, (_,): (Resource<IoError>,)| Ok((String::new(),)),
            )?;
        }
        "wasi:io/poll" => poll(given)?,
        "wasi:io/streams" => {
            input_stream(given)?;
            output_stream(given)?;
        }
        "wasi:filesystem/types" => {
            resource::<Descriptor>(given, "descriptor")?;
            resource::<DirectoryEntries>(given, "directory-entry-stream")?;
        }
        "wasi:filesystem/preopens" => {
            given.func_wrap("get-directories", |_: Caller<'_>, (): ()| {
                Ok((Vec::<(Resource<Descriptor>, String)>::new(),))
            })?;
        }
        _ => {}
    }
    refuse_rest(given, name, component)
}

/// Defines the functions of an interface that were not defined yet: they stop the call.
fn refuse_rest(given: &mut LinkerInstance<'_, Ctx>, name: &str, component: &Component) -> Done {
    let engine = component.engine();
    let imported = component.component_type();
    let mut imports = imported.imports(engine);
    let Some(types::ComponentItem::ComponentInstance(interface)) = imports
        .find(|(import, _)| *import == name)
        .map(|(_, import)| import.ty)
    else {
        return Ok(());
    };
    for (export, item) in interface.exports(engine) {
        if !matches!(item.ty, types::ComponentItem::ComponentFunc(_)) {
            continue;
        }
        let function = format!("{name}#{export}");
        // The linker refuses to define a function twice: then it is one of those that are given.
        let _ = given.func_new(export, move |_, _, _, _| {
            Err(Halt::Wasi {
                function: function.clone(),
            }
            .into())
        });
    }
    Ok(())
}

fn resource<T: 'static>(given: &mut LinkerInstance<'_, Ctx>, name: &str) -> Done {
    given.resource(name, ResourceType::host::<T>(), |_, _| Ok(()))
}

fn environment(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    given.func_wrap("get-environment", |_: Caller<'_>, (): ()| {
        Ok((Vec::<(String, String)>::new(),))
    })?;
    given.func_wrap("get-arguments", |_: Caller<'_>, (): ()| {
        Ok((Vec::<String>::new(),))
    })?;
    given.func_wrap("initial-cwd", |_: Caller<'_>, (): ()| Ok((None::<String>,)))
}

fn exit(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    given.func_wrap(
        "exit",
        |_: Caller<'_>, (status,): (Result<(), ()>,)| -> wasmtime::Result<()> {
            Err(Halt::Exited {
                code: u8::from(status.is_err()),
            }
            .into())
        },
    )
}

fn output(given: &mut LinkerInstance<'_, Ctx>, name: &str, stream: u32) -> Done {
    given.func_wrap(name, move |_: Caller<'_>, (): ()| {
        Ok((Resource::<OutputStream>::new_own(stream),))
    })
}

fn no_terminal<T: 'static>(given: &mut LinkerInstance<'_, Ctx>, name: &str) -> Done {
    given.func_wrap(name, |_: Caller<'_>, (): ()| Ok((None::<Resource<T>>,)))
}

fn monotonic_clock(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    given.func_wrap("now", |store: Caller<'_>, (): ()| {
        Ok((store.data().wasi.time,))
    })?;
    given.func_wrap("resolution", |_: Caller<'_>, (): ()| Ok((1u64,)))?;
    for name in ["subscribe-instant", "subscribe-duration"] {
        given.func_wrap(name, |_: Caller<'_>, (_,): (u64,)| {
            Ok((Resource::<Pollable>::new_own(ANY),))
        })?;
    }
    Ok(())
}

fn wall_clock(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    given.func_wrap("now", |store: Caller<'_>, (): ()| {
        let time = store.data().wasi.time;
        Ok((Datetime {
            seconds: time / NANOS,
            nanoseconds: u32::try_from(time % NANOS).unwrap_or_default(),
        },))
    })?;
    given.func_wrap("resolution", |_: Caller<'_>, (): ()| {
        Ok((Datetime {
            seconds: 0,
            nanoseconds: 1,
        },))
    })
}

fn random_numbers(given: &mut LinkerInstance<'_, Ctx>, bytes: &str, number: &str) -> Done {
    given.func_wrap(bytes, |mut store: Caller<'_>, (count,): (u64,)| {
        if count > RANDOM_BYTES_MAX {
            return Err(over("RANDOM_BYTES_MAX", RANDOM_BYTES_MAX, count).into());
        }
        let mut filled = vec![0; usize::try_from(count).unwrap_or_default()];
        charge(&mut store, filled.len(), 0)?;
        store.data_mut().wasi.random.fill(&mut filled);
        Ok((filled,))
    })?;
    given.func_wrap(number, |mut store: Caller<'_>, (): ()| {
        Ok((store.data_mut().wasi.random_u64(),))
    })
}

fn poll(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    resource::<Pollable>(given, "pollable")?;
    given.func_wrap(
        "[method]pollable.ready",
        |_: Caller<'_>, (_,): (Resource<Pollable>,)| Ok((true,)),
    )?;
    given.func_wrap(
        "[method]pollable.block",
        |_: Caller<'_>, (_,): (Resource<Pollable>,)| Ok(()),
    )?;
    given.func_wrap(
        "poll",
        |_: Caller<'_>, (pollables,): (Vec<Resource<Pollable>>,)| {
            let ready: Vec<u32> = (0u32..).take(pollables.len()).collect();
            Ok((ready,))
        },
    )
}

/// Standard input has ended.
fn input_stream(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    resource::<InputStream>(given, "input-stream")?;
    for name in ["read", "blocking-read"] {
        given.func_wrap(
            &format!("[method]input-stream.{name}"),
            |_: Caller<'_>, (_, _): (Resource<InputStream>, u64)| {
                Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
            },
        )?;
    }
    for name in ["skip", "blocking-skip"] {
        given.func_wrap(
            &format!("[method]input-stream.{name}"),
            |_: Caller<'_>, (_, _): (Resource<InputStream>, u64)| {
                Ok((Err::<u64, _>(StreamError::Closed),))
            },
        )?;
    }
    given.func_wrap(
        "[method]input-stream.subscribe",
        |_: Caller<'_>, (_,): (Resource<InputStream>,)| Ok((Resource::<Pollable>::new_own(ANY),)),
    )
}

fn output_stream(given: &mut LinkerInstance<'_, Ctx>) -> Done {
    resource::<OutputStream>(given, "output-stream")?;
    given.func_wrap(
        "[method]output-stream.check-write",
        |_: Caller<'_>, (_,): (Resource<OutputStream>,)| {
            Ok((Ok::<u64, StreamError>(WRITE_BYTES_MAX),))
        },
    )?;
    for name in ["write", "blocking-write-and-flush"] {
        given.func_wrap(
            &format!("[method]output-stream.{name}"),
            |mut store: Caller<'_>, (stream, bytes): (Resource<OutputStream>, Vec<u8>)| {
                charge(&mut store, bytes.len(), 0)?;
                store.data_mut().write(stream.rep(), &bytes);
                Ok((Ok::<(), StreamError>(()),))
            },
        )?;
    }
    for name in ["flush", "blocking-flush"] {
        given.func_wrap(
            &format!("[method]output-stream.{name}"),
            |_: Caller<'_>, (_,): (Resource<OutputStream>,)| Ok((Ok::<(), StreamError>(()),)),
        )?;
    }
    given.func_wrap(
        "[method]output-stream.subscribe",
        |_: Caller<'_>, (_,): (Resource<OutputStream>,)| Ok((Resource::<Pollable>::new_own(ANY),)),
    )
}
