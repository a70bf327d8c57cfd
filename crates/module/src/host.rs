//! The engines, and the way from bytes to a module that can run.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OperatorCost, OptLevel, PoolingAllocationConfig,
    Strategy, WasmBacktraceDetails,
};

use crate::cache::{Artefacts, Blake3Hasher};
use crate::imports::{self, Ctx};
use crate::instance::{self, InstanceContext};
use crate::scan::{self, Scan, Shape};
use crate::wasi::{self, Wasi};
use crate::{
    ABI_VERSION, ArtefactCache, EMIT_NAME_BYTES_MAX, EMIT_PAYLOAD_BYTES_MAX, HOST_BYTE_FUEL,
    HOST_CALL_FUEL, HOST_ROW_FUEL, Halt, Instance, KEY_BYTES_MAX, Limits, MEMORIES_MAX,
    MEMORY_BYTES_MAX, MIGRATE_CALLS, Manifest, ModuleKind, PAGE_BYTES_MAX, REFERENCE_TABLES_MAX,
    RefusedModule, TABLE_ELEMENTS_MAX, VALUE_BYTES_MAX, WASM_STACK_BYTES,
};

/// Version of the engine; a test holds it to the one that is linked.
const ENGINE_VERSION: &str = "wasmtime 48.0.8";
/// Components kept compiled in memory, so that inspecting and compiling one is one compilation.
const RECENT_COMPONENTS: usize = 8;
/// Core instances of one component: shims and adapters are some.
const CORE_INSTANCES_PER_COMPONENT: u32 = 24;

/// Which part of WASI a module is given. Recorded at its activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WasiProfile {
    /// Nothing: an import of WASI is refused.
    None,
    /// Preview 2 without a world outside: clocks show the time of events, random numbers come from
    /// the seed, standard output is the module's log, and there are no files, arguments, environment.
    Deterministic,
}

impl WasiProfile {
    /// The name in records and commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Deterministic => "deterministic",
        }
    }

    /// The profile of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Deterministic]
            .into_iter()
            .find(|profile| profile.name() == name)
    }
}

/// How a host is set up. None of it changes what modules compute.
pub struct HostConfig {
    /// Instances of validators, reducers and processors that can live at the same time. Each
    /// reserves 4 GiB of address space (not memory).
    pub fold_instances_max: u32,
    /// Instances of queries that can live at the same time.
    pub query_instances_max: u32,
    /// Where compiled artefacts are kept; without one, each start compiles again.
    pub cache: Option<Box<dyn ArtefactCache>>,
    /// Key of the artefacts' checksums: secret, and the same at each start.
    pub cache_key: [u8; 32],
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            fold_instances_max: 128,
            query_instances_max: 32,
            cache: None,
            cache_key: [0; 32],
        }
    }
}

/// The engine could not be set up.
#[derive(Debug, thiserror::Error)]
#[error(
    "the WebAssembly engine cannot start: {reason}; it reserves 4 GiB of address space for each \
     instance, so check `ulimit -v`, or configure fewer instances"
)]
pub struct HostError {
    /// What the engine says.
    pub reason: String,
}

/// What a component is: its hash, its manifest, and what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// BLAKE3 of the component.
    pub hash: [u8; 32],
    /// Length of the component.
    pub bytes: u64,
    /// What it says about itself.
    pub manifest: Manifest,
    /// The profile that its imports need.
    pub wasi: WasiProfile,
    /// Names of its imports, with versions.
    pub imports: Vec<String>,
}

/// A component, compiled, linked and checked under its limits. Cheap to clone.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    pre: InstancePre<Ctx>,
    info: ModuleInfo,
    limits: Limits,
    wasi: WasiProfile,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("info", &self.inner.info)
            .field("limits", &self.inner.limits)
            .field("wasi", &self.inner.wasi)
            .finish_non_exhaustive()
    }
}

impl Module {
    /// What it is.
    pub fn info(&self) -> &ModuleInfo {
        &self.inner.info
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The profile that it was compiled for.
    pub fn wasi(&self) -> WasiProfile {
        self.inner.wasi
    }

    pub(crate) fn pre(&self) -> &InstancePre<Ctx> {
        &self.inner.pre
    }

    /// A fresh guest: some microseconds for compiled languages.
    ///
    /// # Errors
    ///
    /// [`Halt::Environment`] if [`HostConfig`]'s number of instances live already; what the guest did
    /// when it started, else.
    pub fn instantiate(&self, context: &InstanceContext) -> Result<Instance, Halt> {
        Instance::new(self, context)
    }
}

/// The engines. One for a process; shared between threads.
pub struct Host {
    fold: Engine,
    query: Engine,
    artefacts: Artefacts,
    recent: Mutex<VecDeque<Recent>>,
}

struct Recent {
    hash: blake3::Hash,
    is_query: bool,
    component: Component,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl Host {
    /// Sets up the engines.
    ///
    /// # Errors
    ///
    /// If the machine does not allow what the engine needs.
    pub fn new(config: HostConfig) -> Result<Self, HostError> {
        let engine = |instances, has_deadlines| {
            Engine::new(&engine_config(instances, has_deadlines)).map_err(|error| HostError {
                reason: format!("{error:#}"),
            })
        };
        Ok(Self {
            fold: engine(config.fold_instances_max, false)?,
            query: engine(config.query_instances_max, true)?,
            artefacts: Artefacts::new(config.cache, config.cache_key),
            recent: Mutex::new(VecDeque::new()),
        })
    }

    /// Moves the deadlines of running queries one tick closer. To be called at a steady pace;
    /// [`Limits::query_ticks`] counts these calls.
    pub fn tick(&self) {
        self.query.increment_epoch();
    }

    /// Makes a component of what was uploaded: a component stays what it is, core modules built with
    /// the SDK or for preview 1 of WASI are wrapped. The result is what is published.
    ///
    /// # Errors
    ///
    /// If the bytes are neither.
    pub fn adapt<'a>(&self, wasm: &'a [u8]) -> Result<Cow<'a, [u8]>, RefusedModule> {
        crate::adapt::adapt(wasm)
    }

    /// What a component is, whatever profile and limits it will get. Compiles it, and runs its
    /// `describe` under the default limits.
    ///
    /// # Errors
    ///
    /// Everything that no profile and no limit could mend.
    pub fn inspect(&self, wasm: &[u8]) -> Result<ModuleInfo, RefusedModule> {
        let limits = Limits {
            memory_bytes: MEMORY_BYTES_MAX,
            table_elements: TABLE_ELEMENTS_MAX,
            ..Limits::default()
        };
        let module = self.compile(wasm, &limits, WasiProfile::Deterministic)?;
        Ok(module.info().clone())
    }

    /// Compiles a component for the limits and the profile that it will run under.
    ///
    /// # Errors
    ///
    /// The import or the limit that stands against it, by name.
    pub fn compile(
        &self,
        wasm: &[u8],
        limits: &Limits,
        profile: WasiProfile,
    ) -> Result<Module, RefusedModule> {
        limits
            .check()
            .map_err(|(limit, asked, max)| RefusedModule::Limit { limit, max, asked })?;
        let scan = scan::scan(wasm, limits)?;
        if profile < scan.wasi {
            return Err(refused_wasi(&scan));
        }
        let hash = blake3::hash(wasm);
        let component = self.component(wasm, &hash, scan.shape == Shape::Query)?;
        let pre = link(&component, &scan)?;
        let manifest = describe(&pre, limits)?;
        check_manifest(&manifest, &scan)?;
        let info = ModuleInfo {
            hash: *hash.as_bytes(),
            bytes: wasm.len() as u64,
            manifest,
            wasi: scan.wasi,
            imports: scan.imports,
        };
        let module = Module {
            inner: Arc::new(Inner {
                pre,
                info,
                limits: *limits,
                wasi: profile,
            }),
        };
        // The types of all exports are checked by making an instance.
        let nowhere = InstanceContext {
            seed: [0; 32],
            sequence: 0,
            time: 0,
        };
        match module.instantiate(&nowhere) {
            Ok(_) => Ok(module),
            Err(Halt::BadAnswer { reason, .. }) => Err(RefusedModule::Contract { reason }),
            Err(halt) => Err(RefusedModule::Start(halt)),
        }
    }

    /// Names everything besides its code that a module's results depend on: engine, flags, costs,
    /// limits, contract. Equal on every machine and libc. A new one is a reason to replay and compare.
    pub fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        let mut hasher = Blake3Hasher(blake3::Hasher::new_derive_key("truthdb semantics id 1"));
        ENGINE_VERSION.hash(&mut hasher);
        FLAGS.hash(&mut hasher);
        operator_cost().hash(&mut hasher);
        ABI_VERSION.hash(&mut hasher);
        for limit in [
            HOST_CALL_FUEL,
            HOST_BYTE_FUEL,
            HOST_ROW_FUEL,
            MIGRATE_CALLS,
            KEY_BYTES_MAX as u64,
            VALUE_BYTES_MAX as u64,
            PAGE_BYTES_MAX as u64,
            EMIT_NAME_BYTES_MAX as u64,
            EMIT_PAYLOAD_BYTES_MAX as u64,
            WASM_STACK_BYTES as u64,
        ] {
            limit.to_le_bytes().hash(&mut hasher);
        }
        for (name, value) in limits.fields() {
            name.hash(&mut hasher);
            value.to_le_bytes().hash(&mut hasher);
        }
        *hasher.0.finalize().as_bytes()
    }

    /// The component, from memory, from the cache, or compiled.
    fn component(
        &self,
        wasm: &[u8],
        hash: &blake3::Hash,
        is_query: bool,
    ) -> Result<Component, RefusedModule> {
        let is_it = |recent: &&Recent| recent.hash == *hash && recent.is_query == is_query;
        if let Some(recent) = self.recent.lock().iter().find(is_it) {
            return Ok(recent.component.clone());
        }
        let engine = if is_query { &self.query } else { &self.fold };
        let component = self
            .artefacts
            .component(engine, wasm, hash)
            .map_err(|error| RefusedModule::Invalid {
                reason: format!("{error:#}"),
            })?;
        let mut recent = self.recent.lock();
        recent.truncate(RECENT_COMPONENTS - 1);
        recent.push_front(Recent {
            hash: *hash,
            is_query,
            component: component.clone(),
        });
        Ok(component)
    }
}

/// What of the engine's settings changes results; a part of the semantics id.
const FLAGS: &str = "cranelift speed; nan canonicalization; simd; no relaxed simd; no threads; \
                     no memory64; growth failure is a fault";

/// Prices of operators. Pinned here, and by a test: defaults have moved between versions.
fn operator_cost() -> OperatorCost {
    OperatorCost::new()
}

fn engine_config(instances_max: u32, has_deadlines: bool) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances_max)
        .total_core_instances(instances_max.saturating_mul(4))
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(REFERENCE_TABLES_MAX)
        .total_memories(instances_max)
        .total_tables(instances_max.saturating_mul(2))
        .table_elements(TABLE_ELEMENTS_MAX as usize)
        .max_memory_size(usize::try_from(MEMORY_BYTES_MAX).unwrap_or(usize::MAX));
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .wasm_simd(true)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_component_model(true)
        .concurrency_support(false)
        .consume_fuel(true)
        .operator_cost(operator_cost())
        .epoch_interruption(has_deadlines)
        .max_wasm_stack(WASM_STACK_BYTES)
        .memory_may_move(false)
        .memory_init_cow(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .native_unwind_info(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

fn refused_wasi(scan: &Scan) -> RefusedModule {
    let import = scan
        .imports
        .iter()
        .find(|import| scan::wasi_interface(import).is_some());
    RefusedModule::Import {
        import: import.cloned().unwrap_or_default(),
        reason: "modules are given no WASI under the profile none; build without it, or activate \
                 with the profile deterministic",
    }
}

/// Defines every import of the component, under the name by which it imports it.
fn link(component: &Component, scan: &Scan) -> Result<InstancePre<Ctx>, RefusedModule> {
    let contract = |error: wasmtime::Error| RefusedModule::Contract {
        reason: format!("{error:#}"),
    };
    let mut linker = Linker::new(component.engine());
    for import in &scan.imports {
        let is_known = match (scan::own_interface(import), scan::wasi_interface(import)) {
            (Some(interface), _) => {
                imports::link(&mut linker, interface, import).map_err(contract)?
            }
            (None, Some(interface)) => {
                wasi::link(&mut linker, interface, import, component).map_err(contract)?;
                true
            }
            (None, None) => false,
        };
        if !is_known {
            return Err(RefusedModule::Import {
                import: import.clone(),
                reason: "truthdb:module@0.1.0 has no such interface",
            });
        }
    }
    linker.instantiate_pre(component).map_err(contract)
}

/// Asks the module what it is.
fn describe(pre: &InstancePre<Ctx>, limits: &Limits) -> Result<Manifest, RefusedModule> {
    let wasi = Wasi::at(&[0; 32], 0, 0);
    let fuel = limits.fuel_per_call;
    let (mut store, guest) =
        instance::start(pre, Ctx::new(*limits, wasi), fuel).map_err(RefusedModule::Start)?;
    let function = match instance::export::<(), (Manifest,)>(&mut store, &guest, "describe") {
        Ok(function) => function,
        Err(Halt::BadAnswer { reason, .. }) => return Err(RefusedModule::Contract { reason }),
        Err(halt) => return Err(RefusedModule::Start(halt)),
    };
    let (manifest,) = instance::guarded("describe", &mut store, fuel, |store| {
        function.call(store, ())
    })
    .map_err(RefusedModule::Start)?;
    manifest
        .check()
        .map_err(|reason| RefusedModule::Manifest { reason })?;
    Ok(manifest)
}

/// Whether the manifest's kind is that of the exports and imports.
fn check_manifest(manifest: &Manifest, scan: &Scan) -> Result<(), RefusedModule> {
    let shape = match manifest.kind {
        ModuleKind::Validator => Shape::Validator,
        ModuleKind::Reducer | ModuleKind::Processor => Shape::Fold,
        ModuleKind::Query => Shape::Query,
    };
    if shape != scan.shape {
        return Err(RefusedModule::Manifest {
            reason: format!(
                "kind is {}, but the exports are those of another world",
                manifest.kind
            ),
        });
    }
    let forbidden = [
        ("emit", manifest.kind != ModuleKind::Processor),
        ("state-write", !manifest.kind.owns_tables()),
    ];
    match forbidden
        .into_iter()
        .find(|(interface, is_forbidden)| *is_forbidden && scan.imports_own(interface))
    {
        Some(("emit", _)) => Err(RefusedModule::Import {
            import: "truthdb:module/emit@0.1.0".to_owned(),
            reason: "only a processor may emit",
        }),
        Some(_) => Err(RefusedModule::Import {
            import: "truthdb:module/state-write@0.1.0".to_owned(),
            reason: "only reducers and processors may write",
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host::new(HostConfig {
            fold_instances_max: 2,
            query_instances_max: 2,
            ..HostConfig::default()
        })
        .unwrap()
    }

    /// Whoever moves the engine's version or its prices sees it here, and with it that modules may
    /// compute other results, or halt elsewhere, than they did.
    #[test]
    fn the_semantics_id_is_pinned() {
        let id = blake3::Hash::from_bytes(host().semantics_id(&Limits::default()));
        assert_eq!(
            id.to_hex().as_str(),
            "0000000000000000000000000000000000000000000000000000000000000000"
        );
        let lock = include_str!("../../../Cargo.lock");
        let (name, version) = ENGINE_VERSION.split_once(' ').unwrap();
        assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")));
    }

    #[test]
    fn every_limit_is_part_of_the_semantics() {
        let host = host();
        let base = Limits::default();
        let mut ids = vec![host.semantics_id(&base)];
        let changes: [fn(&mut Limits); 9] = [
            |limits| limits.memory_bytes += 1,
            |limits| limits.table_elements += 1,
            |limits| limits.fuel_per_call += 1,
            |limits| limits.fuel_per_event += 1,
            |limits| limits.emits_per_call += 1,
            |limits| limits.emit_bytes_per_call += 1,
            |limits| limits.log_bytes_per_call += 1,
            |limits| limits.fuel_per_query += 1,
            |limits| limits.query_ticks += 1,
        ];
        for change in changes {
            let mut limits = base;
            change(&mut limits);
            ids.push(host.semantics_id(&limits));
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10);
    }

    #[test]
    fn limits_beyond_the_host_are_refused_by_name() {
        let limits = Limits {
            memory_bytes: 2 << 30,
            ..Limits::default()
        };
        let component = wat::parse_str("(component)").unwrap();
        let refused = host().compile(&component, &limits, WasiProfile::None);
        assert!(
            matches!(
                refused,
                Err(RefusedModule::Limit {
                    limit: "memory_bytes",
                    ..
                })
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn profiles_have_names() {
        for profile in [WasiProfile::None, WasiProfile::Deterministic] {
            assert_eq!(WasiProfile::from_name(profile.name()), Some(profile));
        }
        assert_eq!(WasiProfile::from_name("full"), None);
    }
}
