//! Guests that misbehave: every fault comes back as an error with a name, nothing else is touched, and
//! the next instance works.

use std::sync::Arc;

use truthdb_guests::{Guest, raw_faults, raw_reducer, wasm};
use truthdb_module::{
    ColumnEvent, EventColumns, GUEST_STACK_BYTES_MIN, Halt, HaltClass, Host, HostConfig,
    InstanceContext, KeyRange, Limits, LogLevel, MapTables, Module, Page, Processed, StateFault,
    StateRead, StateWrite, TrapKind, WasiProfile,
};

fn host() -> Host {
    Host::new(HostConfig {
        fold_instances_max: 2,
        query_instances_max: 1,
        ..HostConfig::default()
    })
    .unwrap()
}

/// A test thread's stack may be too small for a guest that overflows its own.
fn with_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .stack_size(GUEST_STACK_BYTES_MIN)
        .spawn(test)
        .unwrap()
        .join()
        .unwrap();
}

fn start() -> InstanceContext {
    InstanceContext {
        seed: [1; 32],
        sequence: 0,
        time: 0,
    }
}

fn batch(module: &Module, events: &[(&str, &str)]) -> Arc<EventColumns> {
    let mut columns = EventColumns::default();
    for (sequence, (event_type, payload)) in (1..).zip(events) {
        let manifest = &module.info().manifest;
        columns.push(&ColumnEvent {
            sequence,
            time: sequence,
            revision: sequence - 1,
            kind: manifest.subscription_of("hostile", event_type).unwrap(),
            stream: "hostile",
            event_type,
            id: [0; 16],
            metadata: b"",
            payload: payload.as_bytes(),
        });
    }
    Arc::new(columns)
}

fn hostile(host: &Host, limits: &Limits) -> Module {
    let core = wasm(Guest::Hostile);
    let component = host.adapt(&core).unwrap();
    host.compile(&component, limits, WasiProfile::None).unwrap()
}

/// Gives the module one event after a harmless one.
fn told(module: &Module, event_type: &str, payload: &str) -> (MapTables, Result<Processed, Halt>) {
    let mut instance = module.instantiate(&start()).unwrap();
    let events = [("note", "before"), (event_type, payload)];
    let (tables, result) =
        instance.process(Box::new(MapTables::default()), &batch(module, &events));
    if result.is_err() {
        let (_, again) = instance.process(
            Box::new(MapTables::default()),
            &batch(module, &[("note", "after")]),
        );
        assert_eq!(again, Err(Halt::Gone), "after a fault the instance is gone");
        assert!(format!("{instance:?}").contains("is_gone: true"));
    }
    (*tables, result)
}

#[test]
fn every_fault_of_webassembly_has_a_name() {
    with_stack(|| {
        let host = host();
        for fault in raw_faults() {
            let component = wat::parse_str(&fault.text).unwrap();
            let module = host
                .compile(&component, &Limits::default(), WasiProfile::None)
                .unwrap();
            let outcome = || {
                let mut instance = module.instantiate(&start()).unwrap();
                let (_, result) = instance.process(
                    Box::new(MapTables::default()),
                    &batch(&module, &[("any", "x"); 3]),
                );
                match result {
                    Ok(processed) => (format!("ok with {} fuel", processed.fuel), None),
                    Err(halt) => (halt.to_string(), Some(halt.class())),
                }
            };
            let (message, class) = outcome();
            assert!(
                message.contains(fault.message),
                "{}: {message:?} has no {:?}",
                fault.name,
                fault.message
            );
            assert!(
                class.is_none() || class == Some(HaltClass::Module),
                "{}",
                fault.name
            );
            assert_eq!(outcome(), (message, class), "{}: again", fault.name);
        }
    });
}

#[test]
fn a_fault_leaves_the_writes_before_it_to_the_caller() {
    let host = host();
    let module = hostile(&host, &Limits::default());
    let (tables, result) = told(&module, "error", "no more");
    assert_eq!(
        result,
        Err(Halt::Refused {
            reason: "no more".to_owned()
        })
    );
    assert_eq!(tables.rows.len(), 1, "the caller rolls back");
    let (tables, result) = told(&module, "note", "after");
    result.unwrap();
    assert_eq!(tables.rows.len(), 2, "the next instance works");
}

#[test]
fn what_a_language_does_wrong_is_contained() {
    with_stack(|| {
        let host = host();
        let module = hostile(&host, &Limits::default());
        let trap = |kind| {
            Err(Halt::Trap {
                call: "process",
                kind,
            })
        };
        assert_eq!(told(&module, "panic", "").1, trap(TrapKind::Unreachable));
        assert_eq!(
            told(&module, "recurse", "").1,
            trap(TrapKind::MemoryOutOfBounds)
        );
        let looped = told(&module, "loop", "").1.unwrap_err();
        let fuel = Limits::default().fuel(2);
        assert_eq!(
            looped,
            Halt::OutOfFuel {
                call: "process",
                fuel
            }
        );
        assert!(looped.to_string().contains("fuel_per_event"), "{looped}");
    });
}

fn limit_of(result: Result<Processed, Halt>) -> (&'static str, u64) {
    match result {
        Err(Halt::Limit { limit, max, .. }) => (limit, max),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_limit_is_named() {
    let host = host();
    let limits = Limits {
        memory_bytes: 32 * 1024 * 1024,
        emits_per_call: 10,
        emit_bytes_per_call: 100,
        ..Limits::default()
    };
    let module = hostile(&host, &limits);
    let memory = ("memory_bytes", limits.memory_bytes);
    assert_eq!(limit_of(told(&module, "eat", "").1), memory);
    let two_gib = (2u64 << 30).to_string();
    assert_eq!(limit_of(told(&module, "grab", &two_gib).1), memory);
    assert_eq!(
        limit_of(told(&module, "long-key", "2000").1),
        ("KEY_BYTES_MAX", 1024)
    );
    assert_eq!(
        limit_of(told(&module, "emit", "11").1),
        ("emits_per_call", 10)
    );
    let few_bytes = Limits {
        emit_bytes_per_call: 20,
        ..limits
    };
    let module = hostile(&host, &few_bytes);
    assert_eq!(
        limit_of(told(&module, "emit", "5").1),
        ("emit_bytes_per_call", 20)
    );
    let (_, result) = told(&module, "unknown-table", "");
    assert_eq!(
        result,
        Err(Halt::UnknownTable {
            table: 99,
            tables: 1
        })
    );
}

#[test]
fn derived_events_have_names_of_their_own() {
    let host = host();
    let module = hostile(&host, &Limits::default());
    for what in ["emit-system", "emit-nameless"] {
        let halt = told(&module, what, "").1.unwrap_err();
        assert!(
            matches!(halt, Halt::BadAnswer { call: "emit", .. }),
            "{halt}"
        );
    }
    let processed = told(&module, "emit", "3").1.unwrap();
    assert_eq!(processed.emits.len(), 3);
    assert_eq!(processed.emits[0].source, 1);
}

#[test]
fn messages_are_kept_up_to_a_limit_also_from_calls_that_stop() {
    let host = host();
    let limits = Limits {
        log_bytes_per_call: 50,
        ..Limits::default()
    };
    let module = hostile(&host, &limits);
    let processed = told(&module, "chatter", "100").1.unwrap();
    let kept: usize = processed.logs.iter().map(|line| line.message.len()).sum();
    assert_eq!(kept, 50);
    assert_eq!(processed.logs[0].level, LogLevel::Warn);
    assert_eq!(processed.logs[0].message, "about to chatter");
    assert_eq!(processed.log_bytes_dropped, 16 + 100 * 19 - 50);

    let mut instance = module.instantiate(&start()).unwrap();
    let (_, result) = instance.process(
        Box::new(MapTables::default()),
        &batch(&module, &[("panic", "")]),
    );
    result.unwrap_err();
    assert_eq!(instance.take_logs()[0].message, "about to panic");
    assert!(instance.take_logs().is_empty());
}

#[test]
fn instances_that_live_are_limited_by_the_host() {
    let host = host();
    let module = hostile(&host, &Limits::default());
    let first = module.instantiate(&start()).unwrap();
    let _second = module.instantiate(&start()).unwrap();
    let refused = module.instantiate(&start()).unwrap_err();
    assert_eq!(refused.class(), HaltClass::Host, "{refused}");
    drop(first);
    module.instantiate(&start()).unwrap();
}

/// Tables that fail in a way of their own.
struct Broken {
    panics: bool,
}

impl StateRead for Broken {
    fn get(&mut self, _: u32, _: &[u8]) -> Result<Option<Vec<u8>>, StateFault> {
        assert!(!self.panics, "the tables are broken");
        Err(StateFault {
            reason: "a chunk is missing".to_owned(),
        })
    }

    fn scan(&mut self, _: u32, _: &KeyRange, _: u32, _: bool) -> Result<Page, StateFault> {
        Ok(Page::default())
    }
}

impl StateWrite for Broken {
    fn set(&mut self, _: u32, _: &[u8], _: &[u8]) -> Result<(), StateFault> {
        Ok(())
    }

    fn delete(&mut self, _: u32, _: &[u8]) -> Result<bool, StateFault> {
        Ok(false)
    }

    fn delete_range(&mut self, _: u32, _: &KeyRange) -> Result<u64, StateFault> {
        Ok(0)
    }
}

#[test]
fn failing_tables_are_not_the_modules_fault() {
    let host = host();
    let module = hostile(&host, &Limits::default());
    let events = batch(&module, &[("note", "a")]);
    let mut instance = module.instantiate(&start()).unwrap();
    let (back, result) = instance.process(Box::new(Broken { panics: false }), &events);
    let halt = result.unwrap_err();
    assert_eq!(halt.class(), HaltClass::State);
    assert!(halt.to_string().contains("a chunk is missing"), "{halt}");
    assert!(!back.panics, "the tables come back");

    let mut instance = module.instantiate(&start()).unwrap();
    let (back, result) = instance.process(Box::new(Broken { panics: true }), &events);
    let halt = result.unwrap_err();
    assert_eq!(
        halt,
        Halt::HostPanic {
            call: "process",
            message: "the tables are broken".to_owned()
        }
    );
    assert!(back.panics, "the tables come back");
    let (_, again) = instance.process(back, &events);
    assert_eq!(again, Err(Halt::Gone));
}

#[test]
fn growth_within_the_limit_is_allowed() {
    let host = host();
    let text = raw_reducer(
        "(if (i32.ne (memory.grow (i32.const 100)) (i32.const 2)) (then (unreachable)))",
        "",
    );
    let component = wat::parse_str(&text).unwrap();
    let module = host
        .compile(&component, &Limits::default(), WasiProfile::None)
        .unwrap();
    let mut instance = module.instantiate(&start()).unwrap();
    let events = batch(&module, &[("any", "")]);
    let (_, result) = instance.process(Box::new(MapTables::default()), &events);
    result.unwrap();
}
