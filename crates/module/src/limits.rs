//! Limits, each with a name that errors use, and the semantics id that they go into.
//!
//! Two kinds: constants of the engine, the same for every module, and [`Limits`], chosen at
//! activation and recorded in the log, since what a module computes can depend on them.

/// Stack that a thread needs to call into guests, in bytes: the guest's own part
/// ([`WASM_STACK_BYTES`]) and a wide margin. On a smaller one an overflow of the guest could end the
/// process instead of the call.
pub const GUEST_STACK_BYTES_MIN: usize = 4 * 1024 * 1024;
/// Stack of a guest, in bytes.
pub const WASM_STACK_BYTES: usize = 1024 * 1024;

/// Longest component or core module that is taken, in bytes.
pub const MODULE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest body of one function, in bytes. Compilers take more than linear time for long ones.
pub const FUNCTION_BYTES_MAX: usize = 1024 * 1024;
/// Most locals of one function. Registers are given to each.
pub const FUNCTION_LOCALS_MAX: u64 = 10_000;
/// Most functions of all core modules of a component.
pub const FUNCTIONS_MAX: u64 = 100_000;
/// Bytes of code of all core modules of a component.
pub const CODE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most core modules of a component. Adapters and shims are core modules of their own.
pub const CORE_MODULES_MAX: u64 = 16;
/// Most imports and exports of a component.
pub const COMPONENT_ITEMS_MAX: u64 = 500;

/// Largest linear memory that [`Limits::memory_bytes`] may grant, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most linear memories of an instance.
pub const MEMORIES_MAX: u32 = 4;
/// Most elements that [`Limits::table_elements`] may grant.
pub const TABLE_ELEMENTS_MAX: u32 = 100_000;
/// Most tables of references of an instance (not tables of rows).
pub const REFERENCE_TABLES_MAX: u32 = 8;

/// Longest key, in bytes. The shortest is 0.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of data of one page. A single row is never cut.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Longest token that goes from one step of a query to the next, in bytes.
pub const RESUME_BYTES_MAX: usize = 1024;
/// Longest payload of an emitted event, in bytes: that of any event.
pub const EMIT_PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest stream name, event type and content type of an emitted event, in bytes.
pub const EMIT_NAME_BYTES_MAX: usize = 255;
/// Longest text that a module gives as a reason, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 4 * 1024;
/// Most tables of rows, and most subscriptions, of a manifest.
pub const MANIFEST_ITEMS_MAX: usize = 64;

/// Calls whose fuel a migration gets: it may have to touch every row.
pub const MIGRATE_CALLS: u64 = 1000;
/// Fuel for the entry into any host function.
pub const HOST_CALL_FUEL: u64 = 200;
/// Fuel for each byte that a host function copies in or out.
pub const HOST_BYTE_FUEL: u64 = 1;
/// Fuel for each row that a host function visits.
pub const HOST_ROW_FUEL: u64 = 100;

/// What one module may use. Recorded when it is activated; a part of [`semantics_id`].
///
/// [`semantics_id`]: crate::Host::semantics_id
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, all its memories together, in bytes; at most
    /// [`MEMORY_BYTES_MAX`].
    pub memory_bytes: u64,
    /// Elements of one table of references; at most [`TABLE_ELEMENTS_MAX`].
    pub table_elements: u32,
    /// Fuel of a call, whatever it gets, and of the making of an instance.
    pub fuel_per_call: u64,
    /// More fuel of a call for each of its events.
    pub fuel_per_event: u64,
    /// Events that one call may emit.
    pub emits_per_call: u32,
    /// Bytes of names and payloads that one call may emit.
    pub emit_bytes_per_call: u64,
    /// Bytes of messages that one call may write; what is over is dropped.
    pub log_bytes_per_call: u32,
    /// Fuel of one step of a query, and of its merge.
    pub fuel_per_query: u64,
    /// Calls of [`Host::tick`](crate::Host::tick) that one step of a query may live through.
    pub query_ticks: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 * 1024 * 1024,
            table_elements: 20_000,
            fuel_per_call: 1_000_000_000,
            fuel_per_event: 10_000_000,
            emits_per_call: 10_000,
            emit_bytes_per_call: 8 * 1024 * 1024,
            log_bytes_per_call: 16 * 1024,
            fuel_per_query: 10_000_000_000,
            query_ticks: 100,
        }
    }
}

impl Limits {
    /// Fuel of a call with so many events.
    pub fn fuel(&self, events: usize) -> u64 {
        self.fuel_per_event
            .saturating_mul(events as u64)
            .saturating_add(self.fuel_per_call)
    }

    /// Fuel of a migration.
    pub fn migrate_fuel(&self) -> u64 {
        self.fuel_per_call.saturating_mul(MIGRATE_CALLS)
    }

    /// Checks the limits against what the host can grant.
    ///
    /// # Errors
    ///
    /// The name of the field, what it is, and its largest value.
    pub fn check(&self) -> Result<(), (&'static str, u64, u64)> {
        let granted = [
            ("memory_bytes", self.memory_bytes, MEMORY_BYTES_MAX),
            (
                "table_elements",
                u64::from(self.table_elements),
                u64::from(TABLE_ELEMENTS_MAX),
            ),
        ];
        match granted.into_iter().find(|(_, asked, max)| asked > max) {
            Some(over) => Err(over),
            None => Ok(()),
        }
    }

    /// The fields by name, in the order in which they are hashed and recorded.
    pub fn fields(&self) -> [(&'static str, u64); 9] {
        [
            ("memory_bytes", self.memory_bytes),
            ("table_elements", u64::from(self.table_elements)),
            ("fuel_per_call", self.fuel_per_call),
            ("fuel_per_event", self.fuel_per_event),
            ("emits_per_call", u64::from(self.emits_per_call)),
            ("emit_bytes_per_call", self.emit_bytes_per_call),
            ("log_bytes_per_call", u64::from(self.log_bytes_per_call)),
            ("fuel_per_query", self.fuel_per_query),
            ("query_ticks", self.query_ticks),
        ]
    }
}
