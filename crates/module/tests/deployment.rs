//! What is refused before it runs, and the deterministic profile of WASI.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use std::borrow::Cow;
use std::sync::Arc;

use truthdb_guests::{Guest, raw_reducer, wasm};
use truthdb_module::{
    CODE_BYTES_MAX, ColumnEvent, EventColumns, FUNCTION_BYTES_MAX, Halt, Host, HostConfig,
    InstanceContext, Limits, LogLevel, MODULE_BYTES_MAX, MapTables, Module, ModuleKind, Moment,
    Processed, RefusedModule, StateWrite as _, Verdict, WasiProfile, module_seed,
};

fn host() -> Host {
    Host::new(HostConfig {
        fold_instances_max: 2,
        query_instances_max: 2,
        ..HostConfig::default()
    })
    .unwrap()
}

fn at(sequence: u64, seed: [u8; 32]) -> InstanceContext {
    InstanceContext {
        seed,
        sequence,
        time: 1_000_000_000 * sequence,
    }
}

fn compile(host: &Host, guest: Guest, profile: WasiProfile) -> Result<Module, RefusedModule> {
    let core = wasm(guest);
    let component = host.adapt(&core).unwrap();
    host.compile(&component, &Limits::default(), profile)
}

fn batch(module: &Module, sequence: u64, events: &[(&str, &str, &str)]) -> Arc<EventColumns> {
    let mut columns = EventColumns::default();
    for (sequence, (stream, event_type, payload)) in (sequence..).zip(events) {
        columns.push(&ColumnEvent {
            sequence,
            time: 1_000_000_000 * sequence,
            revision: 0,
            kind: module
                .info()
                .manifest
                .subscription_of(stream, event_type)
                .unwrap(),
            stream,
            event_type,
            id: [0; 16],
            metadata: b"",
            payload: payload.as_bytes(),
        });
    }
    Arc::new(columns)
}

#[test]
fn what_is_no_component_is_refused() {
    let host = host();
    for bytes in [
        &b""[..],
        b"#!/bin/sh\n",
        b"\0asm\x0d\0\x01\0rest",
        &[7; 5000],
    ] {
        let refused = host
            .compile(bytes, &Limits::default(), WasiProfile::None)
            .unwrap_err();
        assert!(
            matches!(
                refused,
                RefusedModule::Invalid { .. } | RefusedModule::MissingExport { .. }
            ),
            "{refused}"
        );
        assert!(host.inspect(bytes).is_err());
    }
    let core = wasm(Guest::Balance);
    let refused = host
        .compile(&core, &Limits::default(), WasiProfile::None)
        .unwrap_err();
    assert_eq!(refused, RefusedModule::CoreModule);
    let component = host.adapt(&core).unwrap();
    assert!(matches!(host.adapt(&component).unwrap(), Cow::Borrowed(_)));
    // The parser accepts it, the compiler does not.
    let mistyped = raw_reducer("(i32.add (i32.const 1) (i32.const 2))", "");
    let mistyped = wat::parse_str(&mistyped).unwrap();
    let refused = host
        .compile(&mistyped, &Limits::default(), WasiProfile::None)
        .unwrap_err();
    assert!(
        matches!(refused, RefusedModule::Invalid { .. }),
        "{refused}"
    );
}

#[test]
fn a_socket_is_refused_by_name() {
    let text = raw_reducer("", "").replacen(
        "(component",
        r#"(component (import "wasi:sockets/tcp@0.2.3" (instance))"#,
        1,
    );
    let component = wat::parse_str(&text).unwrap();
    let refused = host().inspect(&component).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "it imports wasi:sockets/tcp@0.2.3: modules have no network; what they need comes as events"
    );
}

#[test]
fn an_import_of_another_type_is_refused_by_name() {
    let text = raw_reducer("", "").replacen(
        "(component",
        r#"(component (import "truthdb:module/state-read@0.1.0"
            (instance (export "get" (func (param "table" string)))))"#,
        1,
    );
    let component = wat::parse_str(&text).unwrap();
    let refused = host().inspect(&component).unwrap_err();
    assert!(
        matches!(refused, RefusedModule::Contract { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("state-read"), "{refused}");
    let unknown = raw_reducer("", "").replacen(
        "(component",
        r#"(component (import "truthdb:module/clock@0.1.0" (instance))"#,
        1,
    );
    let component = wat::parse_str(&unknown).unwrap();
    let refused = host().inspect(&component).unwrap_err();
    assert!(
        refused.to_string().contains("truthdb:module/clock@0.1.0"),
        "{refused}"
    );
}

#[test]
fn a_reducer_that_emits_is_refused() {
    let text = raw_reducer("", "").replacen(
        "(component",
        r#"(component (import "truthdb:module/emit@0.1.0" (instance))"#,
        1,
    );
    let component = wat::parse_str(&text).unwrap();
    let refused = host().inspect(&component).unwrap_err();
    assert!(
        refused.to_string().contains("only a processor may emit"),
        "{refused}"
    );
}

#[test]
fn a_module_that_asks_for_too_much_is_refused_by_the_name_of_the_limit() {
    let refused = |process: &str, rest: &str| {
        let component = wat::parse_str(raw_reducer(process, rest)).unwrap();
        match host().inspect(&component) {
            Err(RefusedModule::Limit { limit, .. }) => limit,
            other => panic!("{other:?}"),
        }
    };
    let two_gib = raw_reducer("", "").replace(
        "(memory (export \"memory\") 2)",
        "(memory (export \"memory\") 32768)",
    );
    let component = wat::parse_str(&two_gib).unwrap();
    let error = host().inspect(&component).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory_bytes is 268435456, the module has 2147483648"
    );
    assert_eq!(refused("", "(table 10000000 funcref)"), "table_elements");
    let long = "(drop (i32.const 1))".repeat(FUNCTION_BYTES_MAX / 3 + 1);
    assert_eq!(refused(&long, ""), "FUNCTION_BYTES_MAX");
    let body = "(drop (i32.const 1))".repeat(FUNCTION_BYTES_MAX / 3 - 100);
    let count = usize::try_from(CODE_BYTES_MAX).unwrap() / FUNCTION_BYTES_MAX + 1;
    let many = format!("(func {body})").repeat(count);
    assert_eq!(refused("", &many), "CODE_BYTES_MAX");
    let zeros = vec![0; MODULE_BYTES_MAX + 1];
    assert!(matches!(
        host().adapt(&zeros),
        Err(RefusedModule::Limit {
            limit: "MODULE_BYTES_MAX",
            ..
        })
    ));
    let locals = "i64 ".repeat(20_000);
    assert_eq!(
        refused("", &format!("(func (local {locals}))")),
        "FUNCTION_LOCALS_MAX"
    );
}

#[test]
fn a_module_that_does_not_start_is_refused_with_the_reason() {
    let endless = raw_reducer("", "(func $start (loop (br 0))) (start $start)");
    let component = wat::parse_str(&endless).unwrap();
    let refused = host().inspect(&component).unwrap_err();
    assert!(
        matches!(refused, RefusedModule::Start(Halt::OutOfFuel { .. })),
        "{refused}"
    );
    let lying = raw_reducer("", "").replace(
        "(result i32) (i32.const 64)",
        "(result i32) (i32.const 65000)",
    );
    let component = wat::parse_str(&lying).unwrap();
    let refused = host().inspect(&component).unwrap_err();
    assert!(
        matches!(refused, RefusedModule::Manifest { .. }),
        "{refused}"
    );
}

#[test]
fn without_the_profile_wasi_is_refused_by_name() {
    let host = host();
    let refused = compile(&host, Guest::Worldly, WasiProfile::None).unwrap_err();
    assert!(
        refused.to_string().contains("it imports wasi:"),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("profile deterministic"),
        "{refused}"
    );
    let module = compile(&host, Guest::Worldly, WasiProfile::Deterministic).unwrap();
    assert_eq!(module.info().wasi, WasiProfile::Deterministic);
}

/// Lets the module look around at a sequence, and gives what it found.
fn look(module: &Module, sequence: u64, seed: [u8; 32]) -> (Vec<(String, u64)>, Processed) {
    let mut instance = module.instantiate(&at(sequence - 1, seed)).unwrap();
    let events = batch(
        module,
        sequence,
        &[("world", "look", ""), ("world", "sleep", "")],
    );
    let (tables, result) = instance.process(Box::new(MapTables::default()), &events);
    let found = tables
        .rows
        .iter()
        .map(|((_, key), value)| {
            let text = String::from_utf8_lossy(key);
            let value = u64::from_le_bytes(*value.first_chunk().unwrap());
            (text.trim_end_matches('\0').to_owned(), value)
        })
        .collect();
    (found, result.unwrap())
}

#[test]
fn the_world_of_a_module_is_a_function_of_the_log() {
    let host = host();
    let module = compile(&host, Guest::Worldly, WasiProfile::Deterministic).unwrap();
    let seed = module_seed(b"database", &module.info().hash, 0);
    let (found, processed) = look(&module, 40, seed);
    let value = |found: &[(String, u64)], what: &str| {
        let row = found.iter().find(|(key, _)| key.ends_with(what));
        row.unwrap_or_else(|| panic!("{what} is missing in {found:?}"))
            .1
    };
    // The time of the last event of the batch; sleeping takes none.
    assert_eq!(value(&found, "time"), 41_000_000_000);
    assert_eq!(value(&found, "slept"), 0);
    for nothing in ["arguments", "variables", "file"] {
        assert_eq!(value(&found, nothing), 0, "{nothing}");
    }
    let lines: Vec<_> = processed
        .logs
        .iter()
        .map(|line| (line.level, &*line.message))
        .collect();
    assert_eq!(
        lines,
        [
            (LogLevel::Info, "standard output of 40"),
            (LogLevel::Warn, "standard error without an end of line"),
        ]
    );
    assert_eq!(look(&module, 40, seed), (found.clone(), processed), "again");
    let random = value(&found, "random");
    assert_ne!(value(&look(&module, 50, seed).0, "random"), random);
    for other in [
        module_seed(b"database", &module.info().hash, 1),
        module_seed(b"another", &module.info().hash, 0),
        module_seed(b"database", &[0; 32], 0),
    ] {
        assert_ne!(value(&look(&module, 40, other).0, "random"), random);
    }
}

#[test]
fn leaving_the_process_stops_the_call_only() {
    let host = host();
    let module = compile(&host, Guest::Worldly, WasiProfile::Deterministic).unwrap();
    let mut instance = module.instantiate(&at(0, [0; 32])).unwrap();
    let events = batch(&module, 1, &[("world", "exit", "")]);
    let (_, result) = instance.process(Box::new(MapTables::default()), &events);
    assert_eq!(result, Err(Halt::Exited { code: 1 }));
}

/// Rows as the module `balance` leaves them.
fn accounts(range: std::ops::Range<u32>) -> MapTables {
    let mut tables = MapTables::default();
    for n in range {
        let mut value = (i64::from(n) * 10).to_le_bytes().to_vec();
        value.extend_from_slice(&1u32.to_le_bytes());
        let key = format!("account-{n}\0\0");
        tables.set(0, key.as_bytes(), &value).unwrap();
    }
    tables
}

#[test]
fn a_validator_judges_each_event() {
    let host = host();
    let module = compile(&host, Guest::Covered, WasiProfile::None).unwrap();
    assert_eq!(module.info().manifest.kind, ModuleKind::Validator);
    assert_eq!(module.info().manifest.tables[0].module, "balance");
    let mut instance = module.instantiate(&at(0, [0; 32])).unwrap();
    let events = batch(
        &module,
        1,
        &[
            ("account-3", "withdraw", "20"),
            ("account-3", "withdraw", "20"),
            ("account-5", "withdraw", "much"),
        ],
    );
    let (state, result) = instance.validate(Box::new(accounts(0..9)), &events);
    let verdicts = result.unwrap();
    assert_eq!(verdicts[0], Verdict::Accept);
    let code = |verdict: &Verdict| match verdict {
        Verdict::Accept => 0,
        Verdict::Reject(rejection) => rejection.code,
    };
    assert_eq!(verdicts.iter().map(code).collect::<Vec<_>>(), [0, 2, 1]);
    let (_, result) = instance.validate(state, &events);
    assert_eq!(result.unwrap(), verdicts, "the instance goes on");
}

#[test]
fn a_query_runs_step_by_step_and_merges() {
    let host = host();
    let module = compile(&host, Guest::Richest, WasiProfile::None).unwrap();
    let mut instance = module.instantiate(&at(0, [0; 32])).unwrap();
    let moment = Moment {
        sequence: 1,
        time: 1,
    };
    let (mut parts, mut steps) = (Vec::new(), 0);
    for range in [0..2500, 2500..2600] {
        let mut state = Box::new(accounts(range));
        let mut part = truthdb_module::Page::default();
        let mut resume = Vec::new();
        loop {
            let (back, result) = instance.run(state, &moment, b"3", &resume);
            state = back;
            steps += 1;
            let answer = result.unwrap();
            for (key, value) in answer.rows.rows() {
                part.push(key, value);
            }
            if !answer.rows.more {
                break;
            }
            resume = answer.resume;
        }
        parts.push(part);
    }
    assert_eq!(steps, 4);
    let in_steps = instance.fuel_used();
    let page = instance.merge(b"3", parts).unwrap();
    assert!(in_steps > 0 && instance.fuel_used() > in_steps);
    let names: Vec<_> = page
        .rows()
        .map(|(key, _)| String::from_utf8_lossy(key).into_owned())
        .collect();
    assert_eq!(names, ["account-2599", "account-2598", "account-2597"]);

    let (state, result) = instance.run(Box::new(accounts(0..1)), &moment, b"many", b"");
    assert!(matches!(result, Err(Halt::Refused { .. })));
    let (_, result) = instance.run(state, &moment, b"1", b"");
    assert_eq!(result.unwrap().rows.len(), 1, "a refusal is no fault");
}

#[test]
fn a_query_ends_at_its_deadline_whatever_it_does() {
    let host = Arc::new(host());
    let core = wasm(Guest::Richest);
    let component = host.adapt(&core).unwrap();
    let limits = Limits {
        query_ticks: 1,
        ..Limits::default()
    };
    let module = host
        .compile(&component, &limits, WasiProfile::None)
        .unwrap();
    let mut instance = module.instantiate(&at(0, [0; 32])).unwrap();
    let ticking = Arc::clone(&host);
    // The tables tick: the deadline passes in the middle of the step.
    struct Ticking(MapTables, Arc<Host>);
    impl truthdb_module::StateRead for Ticking {
        fn get(
            &mut self,
            table: u32,
            key: &[u8],
        ) -> Result<Option<Vec<u8>>, truthdb_module::StateFault> {
            self.0.get(table, key)
        }

        fn scan(
            &mut self,
            table: u32,
            range: &truthdb_module::KeyRange,
            limit: u32,
            reverse: bool,
        ) -> Result<truthdb_module::Page, truthdb_module::StateFault> {
            self.1.tick();
            self.1.tick();
            self.0.scan(table, range, limit, reverse)
        }
    }
    let moment = Moment {
        sequence: 1,
        time: 1,
    };
    let state = Box::new(Ticking(accounts(0..500), ticking));
    let (_, result) = instance.run(state, &moment, b"3", b"");
    assert_eq!(
        result,
        Err(Halt::Deadline {
            call: "run",
            ticks: 1
        })
    );
}
