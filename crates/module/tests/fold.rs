//! Reducers and processors through the host: results, determinism, the cache of artefacts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use truthdb_guests::{Guest, wasm};
use truthdb_module::{
    ArtefactCache, ColumnEvent, Emit, EventColumns, FoldBench, Halt, Host, HostConfig,
    InstanceContext, Limits, MapTables, Module, ModuleKind, Moment, WasiProfile, Workload,
    push_metadata_pair,
};

fn host() -> Host {
    Host::new(HostConfig {
        fold_instances_max: 4,
        query_instances_max: 1,
        ..HostConfig::default()
    })
    .unwrap()
}

fn module(host: &Host, guest: Guest) -> Module {
    let core = wasm(guest);
    let component = host.adapt(&core).unwrap();
    host.compile(&component, &Limits::default(), WasiProfile::None)
        .unwrap()
}

fn start() -> InstanceContext {
    InstanceContext {
        seed: [1; 32],
        sequence: 0,
        time: 0,
    }
}

/// Events for `balance`, as (stream, type, payload).
fn history() -> Vec<(String, &'static str, String)> {
    let mut events: Vec<_> = (0..200u32)
        .map(|n| {
            let kind = if n % 3 == 0 { "withdraw" } else { "deposit" };
            (
                format!("account-{}", n % 9),
                kind,
                (n * 31 % 500).to_string(),
            )
        })
        .collect();
    events.push(("account-4".to_owned(), "close", String::new()));
    events.push(("audit".to_owned(), "run", String::new()));
    events
}

fn columns(
    module: &Module,
    first: usize,
    events: &[(String, &'static str, String)],
) -> Arc<EventColumns> {
    let mut metadata = Vec::new();
    assert!(push_metadata_pair(&mut metadata, "causation_id", "x"));
    let mut columns = EventColumns::default();
    for (index, (stream, event_type, payload)) in events.iter().enumerate() {
        let manifest = &module.info().manifest;
        columns.push(&ColumnEvent {
            sequence: (first + index + 1) as u64,
            time: (first + index + 1) as u64 * 1_000_000_000,
            revision: index as u64,
            kind: manifest.subscription_of(stream, event_type).unwrap(),
            stream,
            event_type,
            id: [9; 16],
            metadata: &metadata,
            payload: payload.as_bytes(),
        });
    }
    Arc::new(columns)
}

/// Folds the history in batches of a size, with a fresh instance after so many batches.
fn fold(module: &Module, size: usize, batches: usize) -> (MapTables, Vec<(u64, Vec<u8>)>, u64) {
    let events = history();
    let mut tables = Box::new(MapTables::default());
    let mut instance = module.instantiate(&start()).unwrap();
    let (mut emits, mut fuel) = (Vec::new(), 0);
    for (number, share) in events.chunks(size).enumerate() {
        if number % batches == 0 {
            instance = module.instantiate(&start()).unwrap();
        }
        let batch = columns(module, number * size, share);
        let (back, result) = instance.process(tables, &batch);
        tables = back;
        let processed = result.unwrap();
        fuel += processed.fuel;
        for Emit {
            source,
            stream,
            event_type,
            content_type,
            payload,
        } in processed.emits
        {
            assert_eq!(
                (&*stream, &*event_type, &*content_type),
                ("alerts", "overdrawn", "text/plain")
            );
            emits.push((batch.sequences[source as usize], payload));
        }
        assert_eq!(Arc::strong_count(&batch), 1);
    }
    (*tables, emits, fuel)
}

#[test]
fn a_fold_gives_what_the_module_says_however_it_is_cut() {
    let host = host();
    let module = module(&host, Guest::Balance);
    assert_eq!(module.info().manifest.kind, ModuleKind::Processor);
    let (tables, emits, fuel) = fold(&module, usize::MAX, 1);
    // Eight accounts are open, and the totals.
    assert_eq!(tables.rows.len(), 9);
    let totals = &tables.rows[&(1, Vec::new())];
    assert_eq!(totals[..8], 8u64.to_le_bytes());
    let mut balances = BTreeMap::<String, i64>::new();
    for (stream, kind, amount) in history() {
        let amount = amount.parse::<i64>().unwrap_or(0);
        match kind {
            "deposit" => *balances.entry(stream).or_default() += amount,
            "withdraw" => *balances.entry(stream).or_default() -= amount,
            "close" => drop(balances.remove(&stream)),
            _ => {}
        }
    }
    for (stream, balance) in &balances {
        let key = [stream.as_bytes(), &[0, 0]].concat();
        assert_eq!(tables.rows[&(0, key)][..8], balance.to_le_bytes());
    }
    let sum: i64 = balances.values().sum();
    assert_eq!(totals[8..16], sum.to_le_bytes());
    assert!(!emits.is_empty());

    for (size, batches) in [(1, 1), (1, 1000), (7, 2), (50, 1)] {
        let (other, other_emits, _) = fold(&module, size, batches);
        assert_eq!(other, tables, "batches of {size}");
        assert_eq!(other_emits, emits, "batches of {size}");
    }
    assert_eq!(
        fold(&module, usize::MAX, 1).2,
        fuel,
        "fuel is a function of the work"
    );
    assert_eq!(fold(&module, 7, 2).2, fold(&module, 7, 2).2);
}

#[test]
fn a_module_can_be_looked_at_before_it_is_compiled() {
    let host = host();
    let core = wasm(Guest::Balance);
    let component = host.adapt(&core).unwrap();
    let info = host.inspect(&component).unwrap();
    assert_eq!(info.hash, *blake3::hash(&component).as_bytes());
    assert_eq!(info.bytes, component.len() as u64);
    assert_eq!(info.wasi, WasiProfile::None);
    assert_eq!(info.manifest.name, "balance");
    let tables: Vec<_> = info.manifest.tables.iter().map(|t| &*t.name).collect();
    assert_eq!(tables, ["accounts", "totals"]);
    assert!(
        info.imports
            .iter()
            .all(|import| import.starts_with("truthdb:module/")),
        "{:?}",
        info.imports
    );
}

#[test]
fn only_a_fresh_instance_forgets() {
    let host = host();
    let module = module(&host, Guest::Hostile);
    let batch = |first| {
        let event = ("hostile".to_owned(), "impure", "calls".to_owned());
        columns(&module, first, &[event])
    };
    let count = |tables: &MapTables| tables.rows.values().next().unwrap()[0];
    let mut instance = module.instantiate(&start()).unwrap();
    let mut tables = Box::new(MapTables::default());
    for calls in 1..=3 {
        let (back, result) = instance.process(tables, &batch(0));
        result.unwrap();
        tables = back;
        assert_eq!(count(&tables), calls, "an instance keeps its globals");
    }
    let mut fresh = module.instantiate(&start()).unwrap();
    let (tables, result) = fresh.process(tables, &batch(3));
    result.unwrap();
    assert_eq!(count(&tables), 1, "a fresh one does not have them");
}

#[test]
fn a_migration_sees_the_tables() {
    let host = host();
    let module = module(&host, Guest::Balance);
    let mut instance = module.instantiate(&start()).unwrap();
    let at = Moment {
        sequence: 1,
        time: 1,
    };
    let previous = module.info().manifest.clone();
    let (_, result) = instance.migrate(Box::new(MapTables::default()), &previous, &at);
    let processed = result.unwrap();
    assert!(processed.fuel > 0 && processed.emits.is_empty());
}

#[test]
fn calls_of_another_kind_are_refused() {
    let host = host();
    let module = module(&host, Guest::Balance);
    let mut instance = module.instantiate(&start()).unwrap();
    let (_, result) = instance.validate(
        Box::new(MapTables::default()),
        &Arc::new(EventColumns::default()),
    );
    assert_eq!(
        result,
        Err(Halt::NoSuchCall {
            call: "validate",
            kind: ModuleKind::Processor
        })
    );
    assert!(matches!(
        instance.merge(b"", Vec::new()),
        Err(Halt::NoSuchCall { .. })
    ));
}

#[test]
fn the_guest_does_what_native_code_does() {
    let host = host();
    for (guest, workload) in [
        (Guest::Tally, Workload::Tally),
        (Guest::Balance, Workload::Balance { accounts: 50 }),
    ] {
        let module = module(&host, guest);
        let mut instance = module.instantiate(&start()).unwrap();
        let bench = FoldBench::new(workload, 3, 100);
        let ticks = Mutex::new(0u64);
        let clock = || {
            let mut ticks = ticks.lock().unwrap();
            *ticks += 5;
            *ticks
        };
        let (by_guest, natively, times) = bench.run(
            &mut instance,
            Box::new(MapTables::default()),
            Box::new(MapTables::default()),
            &clock,
        );
        let times = times.unwrap();
        assert_eq!(by_guest, natively, "{workload:?}");
        assert!(!by_guest.rows.is_empty());
        assert_eq!((times.events, times.guest_ns, times.native_ns), (300, 5, 5));
        assert!(times.fuel > 300);
    }
}

/// A cache in memory that counts.
#[derive(Default)]
struct Counting {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    stores: Arc<Mutex<u32>>,
}

impl ArtefactCache for Counting {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(name).cloned()
    }

    fn store(&self, name: &str, bytes: &[u8]) {
        *self.stores.lock().unwrap() += 1;
        let mut files = self.files.lock().unwrap();
        files.insert(name.to_owned(), bytes.to_vec());
    }
}

#[test]
fn artefacts_are_used_again_unless_they_are_damaged() {
    let files = Arc::new(Mutex::new(BTreeMap::new()));
    let stores = Arc::new(Mutex::new(0));
    let host = |key| {
        Host::new(HostConfig {
            fold_instances_max: 2,
            query_instances_max: 1,
            cache: Some(Box::new(Counting {
                files: Arc::clone(&files),
                stores: Arc::clone(&stores),
            })),
            cache_key: [key; 32],
        })
        .unwrap()
    };
    let stored = || *stores.lock().unwrap();
    let expected = fold(&module(&host(1), Guest::Balance), 50, 1).0;
    assert_eq!(stored(), 1, "compiled and kept");
    assert_eq!(fold(&module(&host(1), Guest::Balance), 50, 1).0, expected);
    assert_eq!(stored(), 1, "taken from the cache");
    module(&host(2), Guest::Balance);
    assert_eq!(stored(), 2, "sealed with another key: compiled again");
    for artefact in files.lock().unwrap().values_mut() {
        let middle = artefact.len() / 2;
        artefact[middle] ^= 1;
    }
    assert_eq!(fold(&module(&host(2), Guest::Balance), 50, 1).0, expected);
    assert_eq!(stored(), 3, "damaged: compiled again");
}
