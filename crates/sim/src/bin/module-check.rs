//! Runs the faults and the example modules, and prints what came out: the same lines on every machine and
//! with every libc. `cargo xtask modules` compares them between builds.
//!
//! Arguments are `LANGUAGE=FILE`: components that must do exactly what the Rust module `balance` does.
//! The exit code is 1 if one does not.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that is read"
)]

use std::process::ExitCode;
use std::sync::Arc;

use truthdb_guests::{Guest, raw_faults, wasm};
use truthdb_module::{
    ColumnEvent, DirectoryCache, EventColumns, GUEST_STACK_BYTES_MIN, Host, HostConfig,
    InstanceContext, Limits, MapTables, Module, WasiProfile,
};

/// Times that all faults are committed, on each of two threads.
const FAULT_ROUNDS: usize = 50;
/// Sizes of batches that the history is cut into.
const BATCHES: [usize; 3] = [1, 7, 1000];

fn main() -> ExitCode {
    let run = std::thread::Builder::new()
        .stack_size(GUEST_STACK_BYTES_MIN)
        .spawn(check)
        .map(std::thread::JoinHandle::join);
    match run {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(error))) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Ok(Err(_)) | Err(_) => ExitCode::FAILURE,
    }
}

fn check() -> Result<(), String> {
    let cache = std::env::var_os("TRUTHDB_MODULE_CACHE");
    let host = Host::new(HostConfig {
        fold_instances_max: 8,
        query_instances_max: 1,
        cache: cache.map(|folder| Box::new(DirectoryCache::new(folder)) as Box<_>),
        ..HostConfig::default()
    })
    .map_err(|error| error.to_string())?;
    faults(&host)?;
    hostile(&host)?;
    let expected = outcomes(&host, "rust", &wasm(Guest::Balance))?;
    for argument in std::env::args().skip(1) {
        let (language, file) = argument
            .split_once('=')
            .ok_or("an argument is LANGUAGE=FILE")?;
        let bytes = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        if outcomes(&host, language, &bytes)? != expected {
            return Err(format!("{language} does not do what rust does"));
        }
    }
    Ok(())
}

/// Prints what each fault becomes, and commits all of them many times on two threads.
fn faults(host: &Host) -> Result<(), String> {
    let mut modules = Vec::new();
    for fault in raw_faults() {
        let component = wat::parse_str(&fault.text).map_err(|error| error.to_string())?;
        let module = host
            .compile(&component, &short_of_fuel(), WasiProfile::None)
            .map_err(|error| format!("{}: {error}", fault.name))?;
        println!("{}: {}", fault.name, told(&module, "any", ""));
        modules.push(module);
    }
    let all = |modules: &[Module]| {
        for _ in 0..FAULT_ROUNDS {
            for module in modules.iter() {
                told(module, "any", "");
            }
        }
    };
    std::thread::scope(|scope| {
        let spawn = || {
            std::thread::Builder::new()
                .stack_size(GUEST_STACK_BYTES_MIN)
                .spawn_scoped(scope, || all(&modules))
        };
        let threads: Vec<_> = (0..2).filter_map(|_| spawn().ok()).collect();
        let joined = threads.into_iter().map(|thread| thread.join().is_ok());
        println!("threads: {:?}", joined.collect::<Vec<_>>());
    });
    Ok(())
}

fn hostile(host: &Host) -> Result<(), String> {
    let module = compile(host, &wasm(Guest::Hostile), &short_of_fuel())?;
    for (what, with) in [
        ("note", "a"),
        ("error", "as told"),
        ("panic", ""),
        ("loop", ""),
        ("recurse", ""),
        ("eat", ""),
        ("grab", "2147483000"),
        ("long-key", "2000"),
        ("unknown-table", ""),
        ("emit", "20000"),
        ("emit-system", ""),
    ] {
        println!("{what}: {}", told(&module, what, with));
    }
    Ok(())
}

fn compile(host: &Host, wasm: &[u8], limits: &Limits) -> Result<Module, String> {
    let component = host.adapt(wasm).map_err(|error| error.to_string())?;
    host.compile(&component, limits, WasiProfile::None)
        .map_err(|error| error.to_string())
}

/// Little fuel, so that endless loops end soon.
fn short_of_fuel() -> Limits {
    Limits {
        fuel_per_call: 10_000_000,
        fuel_per_event: 1_000_000,
        ..Limits::default()
    }
}

fn start() -> InstanceContext {
    InstanceContext {
        seed: [0; 32],
        sequence: 0,
        time: 0,
    }
}

/// What one event makes of a fresh instance.
fn told(module: &Module, event_type: &str, payload: &str) -> String {
    let events = [("hostile".to_owned(), event_type, payload.to_owned())];
    let mut instance = match module.instantiate(&start()) {
        Ok(instance) => instance,
        Err(halt) => return halt.to_string(),
    };
    let batch = columns(module, 0, &events);
    match instance.process(Box::new(MapTables::default()), &batch) {
        (tables, Ok(processed)) => {
            format!("ok, {} rows, {} fuel", tables.rows.len(), processed.fuel)
        }
        (tables, Err(halt)) => format!("{halt}; {} rows", tables.rows.len()),
    }
}

fn columns(module: &Module, first: usize, events: &[(String, &str, String)]) -> Arc<EventColumns> {
    let mut columns = EventColumns::default();
    for (sequence, (stream, event_type, payload)) in (first as u64 + 1..).zip(events) {
        let manifest = &module.info().manifest;
        columns.push(&ColumnEvent {
            sequence,
            time: sequence * 1_000_000,
            revision: 0,
            kind: manifest
                .subscription_of(stream, event_type)
                .unwrap_or(u32::MAX),
            stream,
            event_type,
            id: [0; 16],
            metadata: b"",
            payload: payload.as_bytes(),
        });
    }
    Arc::new(columns)
}

fn history() -> Vec<(String, &'static str, String)> {
    let mut events = Vec::new();
    for n in 0..1500u64 {
        let kind = if n % 4 == 0 { "withdraw" } else { "deposit" };
        let amount = n * 2_654_435_761 % 100_000;
        events.push((format!("account-{}", n * 7 % 250), kind, amount.to_string()));
        if n % 100 == 99 {
            let account = n * 7 % 250;
            events.push((format!("account-{account}"), "close", String::new()));
            events.push(("audit".to_owned(), "run", String::new()));
        }
    }
    events
}

/// The hashes of rows and of derived events, for each size of batches. Prints them, with the fuel.
fn outcomes(
    host: &Host,
    language: &str,
    wasm: &[u8],
) -> Result<Vec<(blake3::Hash, blake3::Hash)>, String> {
    let module =
        compile(host, wasm, &Limits::default()).map_err(|error| format!("{language}: {error}"))?;
    let mut outcomes = Vec::new();
    for size in BATCHES {
        let (rows, emits, fuel) =
            fold(&module, size).map_err(|error| format!("{language}: {error}"))?;
        println!(
            "balance in {language}, batches of {size}: rows {}, derived events {}, fuel {fuel}",
            &rows.to_hex()[..16],
            &emits.to_hex()[..16]
        );
        outcomes.push((rows, emits));
    }
    Ok(outcomes)
}

fn fold(module: &Module, size: usize) -> Result<(blake3::Hash, blake3::Hash, u64), String> {
    let events = history();
    let mut tables = Box::new(MapTables::default());
    let mut emits = blake3::Hasher::new();
    let mut fuel = 0;
    let mut instance = module
        .instantiate(&start())
        .map_err(|halt| halt.to_string())?;
    for (number, share) in events.chunks(size).enumerate() {
        // A fresh instance now and then, as between epochs.
        if number % 50 == 49 {
            instance = module
                .instantiate(&start())
                .map_err(|halt| halt.to_string())?;
        }
        let batch = columns(module, number * size, share);
        let (back, result) = instance.process(tables, &batch);
        tables = back;
        let processed = result.map_err(|halt| halt.to_string())?;
        fuel += processed.fuel;
        for emit in &processed.emits {
            let source = batch.sequences.get(emit.source as usize);
            let names = (&emit.stream, &emit.event_type, &emit.content_type);
            emits.update(format!("{source:?} {names:?} {:?}", emit.payload).as_bytes());
        }
    }
    let mut rows = blake3::Hasher::new();
    for row in &tables.rows {
        rows.update(format!("{row:?}").as_bytes());
    }
    Ok((rows.finalize(), emits.finalize(), fuel))
}
