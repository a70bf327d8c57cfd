//! Why a module was refused, and why a call of it stopped.

use crate::StateFault;
use wasmtime::{PoolConcurrencyLimitError, Trap};

/// What the guest did that WebAssembly forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrapKind {
    /// `unreachable`: a panic or an abort in most languages.
    Unreachable,
    /// An integer was divided by zero.
    DivisionByZero,
    /// An integer does not fit.
    IntegerOverflow,
    /// A float has no integer value.
    BadConversion,
    /// Calls are nested too deeply.
    StackOverflow,
    /// An address outside of linear memory. Also what most languages do when their own stack overflows.
    MemoryOutOfBounds,
    /// An element outside of a table of references.
    TableOutOfBounds,
    /// An indirect call of nothing, or of another signature.
    BadIndirectCall,
    /// A string, list, number or handle that breaks the rules of the component model.
    BadValue,
    /// Anything else that the engine calls a trap.
    Other,
}

impl TrapKind {
    fn of(trap: Trap) -> Self {
        match trap {
            Trap::UnreachableCodeReached => Self::Unreachable,
            Trap::IntegerDivisionByZero => Self::DivisionByZero,
            Trap::IntegerOverflow => Self::IntegerOverflow,
            Trap::BadConversionToInteger => Self::BadConversion,
            Trap::StackOverflow => Self::StackOverflow,
            Trap::MemoryOutOfBounds => Self::MemoryOutOfBounds,
            Trap::TableOutOfBounds => Self::TableOutOfBounds,
            Trap::IndirectCallToNull | Trap::BadSignature => Self::BadIndirectCall,
            Trap::StringOutOfBounds
            | Trap::ListOutOfBounds
            | Trap::InvalidDiscriminant
            | Trap::InvalidChar
            | Trap::UnalignedPointer => Self::BadValue,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for TrapKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "it reached `unreachable` (a panic or an abort)",
            Self::DivisionByZero => "it divided by zero",
            Self::IntegerOverflow => "an integer overflowed",
            Self::BadConversion => "a float has no integer value",
            Self::StackOverflow => "its calls are nested too deeply",
            Self::MemoryOutOfBounds => {
                "it used an address outside of its memory (its own stack may be too small)"
            }
            Self::TableOutOfBounds => "it called a function outside of its table",
            Self::BadIndirectCall => "it called nothing, or a function of another signature",
            Self::BadValue => "it passed a value that is not of its type",
            Self::Other => "it did what WebAssembly forbids",
        })
    }
}

/// Whose fault a [`Halt`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaltClass {
    /// The module's: the same call would stop again.
    Module,
    /// The caller's tables.
    State,
    /// This process or machine: the same call may succeed at another time.
    Host,
}

/// Why a call stopped. Whatever the reason: the call has to be rolled back, nothing of it counts,
/// and the instance is gone (but for [`Halt::Refused`] of a query).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// The guest trapped.
    #[error("`{call}` trapped: {kind}")]
    Trap {
        /// The function of the module that was called.
        call: &'static str,
        /// What it did.
        kind: TrapKind,
    },
    /// The guest used up its fuel.
    #[error(
        "`{call}` used up its fuel of {fuel} (fuel_per_call, and fuel_per_event for each event): \
         it loops, or needs a higher limit"
    )]
    OutOfFuel {
        /// The function of the module that was called.
        call: &'static str,
        /// What it had.
        fuel: u64,
    },
    /// A query took too long.
    #[error("`{call}` was stopped at its deadline of {ticks} ticks (query_ticks)")]
    Deadline {
        /// The function of the module that was called.
        call: &'static str,
        /// What it had.
        ticks: u64,
    },
    /// The guest went over a limit.
    #[error("{limit} is {max}, the module asked for {asked}")]
    Limit {
        /// Name of the limit.
        limit: &'static str,
        /// What is allowed.
        max: u64,
        /// What the guest wanted.
        asked: u64,
    },
    /// The module itself returned an error.
    #[error("the module refused: {reason}")]
    Refused {
        /// The module's text, cut at [`REASON_BYTES_MAX`](crate::REASON_BYTES_MAX).
        reason: String,
    },
    /// The guest named a table that its manifest does not have.
    #[error("the module used table {table}, its manifest has {tables}")]
    UnknownTable {
        /// The index.
        table: u32,
        /// How many there are.
        tables: u32,
    },
    /// The guest returned or passed something that breaks the contract.
    #[error("`{call}` broke the contract: {reason}")]
    BadAnswer {
        /// The function of the module that was called.
        call: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The guest called a function of WASI that the deterministic profile does not have.
    #[error("the module called {function}, which modules are not given")]
    Wasi {
        /// Interface and function.
        function: String,
    },
    /// The guest called `exit`.
    #[error("the module left with exit code {code}")]
    Exited {
        /// 0 if it said that all was well.
        code: u8,
    },
    /// The caller's tables failed.
    #[error(transparent)]
    State(#[from] StateFault),
    /// Code of the host panicked during the call (only where panics unwind; product binaries abort).
    #[error("the host failed within `{call}`: {message}")]
    HostPanic {
        /// The function of the module that was called.
        call: &'static str,
        /// Text of the panic.
        message: String,
    },
    /// The process or the machine could not provide what a call needs.
    #[error("the host cannot run `{call}` now: {reason}")]
    Environment {
        /// The function of the module that was called.
        call: &'static str,
        /// What was missing.
        reason: String,
    },
    /// The instance stopped at an earlier call.
    #[error("the instance stopped at an earlier call: make a new one")]
    Gone,
    /// The module has no such function, being of another kind.
    #[error("a {kind} has no `{call}`")]
    NoSuchCall {
        /// The function that was asked for.
        call: &'static str,
        /// The kind of the module.
        kind: crate::ModuleKind,
    },
}

impl Halt {
    /// Whose fault it is.
    pub fn class(&self) -> HaltClass {
        match self {
            Self::State(_) => HaltClass::State,
            Self::HostPanic { .. }
            | Self::Environment { .. }
            | Self::Gone
            | Self::NoSuchCall { .. } => HaltClass::Host,
            _ => HaltClass::Module,
        }
    }

    /// What an error of the engine means. Errors of our own travel through the engine unchanged.
    pub(crate) fn of(
        error: &wasmtime::Error,
        call: &'static str,
        fuel: u64,
        query_ticks: u64,
    ) -> Self {
        if let Some(halt) = error.downcast_ref::<Self>() {
            return match halt {
                // The host function did not know the budget.
                Self::OutOfFuel { .. } => Self::OutOfFuel { call, fuel },
                other => other.clone(),
            };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => return Self::OutOfFuel { call, fuel },
            Some(Trap::Interrupt) => {
                return Self::Deadline {
                    call,
                    ticks: query_ticks,
                };
            }
            Some(&trap) => {
                return Self::Trap {
                    call,
                    kind: TrapKind::of(trap),
                };
            }
            None => {}
        }
        let reason = format!("{error:#}");
        if error.is::<PoolConcurrencyLimitError>() || error.is::<std::io::Error>() {
            return Self::Environment { call, reason };
        }
        Self::BadAnswer { call, reason }
    }
}

/// Why a module is not taken. Nothing happened; the same bytes will be refused again, unless the
/// reason is a limit or a profile that the operator can change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedModule {
    /// The bytes are not WebAssembly, or not valid.
    #[error("it is not a valid WebAssembly component: {reason}")]
    Invalid {
        /// What the decoder or the compiler says.
        reason: String,
    },
    /// The bytes are a core module where a component is needed.
    #[error(
        "it is a core module, not a component, and does not say which world it is of: build it with \
         the SDK, or make a component of it"
    )]
    CoreModule,
    /// A preview 1 or core module could not be made into a component.
    #[error("the core module cannot be made into a component: {reason}")]
    NotAdaptable {
        /// What the adapter says.
        reason: String,
    },
    /// It imports something that modules are not given.
    #[error("it imports {import}: {reason}")]
    Import {
        /// The name of the import.
        import: String,
        /// Why not, and what would help.
        reason: &'static str,
    },
    /// It does not export what a module must.
    #[error(
        "it exports no `{export}`: it is none of the worlds validator, reducer, processor, query"
    )]
    MissingExport {
        /// The name of the export.
        export: &'static str,
    },
    /// It exports functions of two worlds.
    #[error("it exports both `{one}` and `{other}`: a module is of one world")]
    TwoWorlds {
        /// An export of one world.
        one: &'static str,
        /// An export of another.
        other: &'static str,
    },
    /// An import or export has another type than the contract says.
    #[error("it does not fit the contract truthdb:module@0.1.0: {reason}")]
    Contract {
        /// What the linker says, with the name.
        reason: String,
    },
    /// It goes over a limit.
    #[error("{limit} is {max}, the module has {asked}")]
    Limit {
        /// Name of the limit.
        limit: &'static str,
        /// What is allowed.
        max: u64,
        /// What it has.
        asked: u64,
    },
    /// It uses a feature that is off, because it is not deterministic, or not needed.
    #[error("it uses {feature}, which modules may not")]
    Feature {
        /// The feature.
        feature: &'static str,
    },
    /// What `describe` answered is not acceptable.
    #[error("its manifest is wrong: {reason}")]
    Manifest {
        /// The field and what it must be.
        reason: String,
    },
    /// `describe`, or the making of an instance, stopped.
    #[error("it cannot be started: {0}")]
    Start(#[source] Halt),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_our_own_come_through_the_engine() {
        let limit = Halt::Limit {
            limit: "KEY_BYTES_MAX",
            max: 1,
            asked: 2,
        };
        let through = wasmtime::Error::from(limit.clone()).context("while running");
        assert_eq!(Halt::of(&through, "process", 1, 1), limit);
        let trap = wasmtime::Error::from(Trap::IntegerDivisionByZero);
        assert_eq!(
            Halt::of(&trap, "process", 1, 1).to_string(),
            "`process` trapped: it divided by zero"
        );
        let fuel = wasmtime::Error::from(Trap::OutOfFuel);
        assert_eq!(
            Halt::of(&fuel, "process", 5, 1),
            Halt::OutOfFuel {
                call: "process",
                fuel: 5
            }
        );
    }

    #[test]
    fn whose_fault_it_is() {
        assert_eq!(Halt::Gone.class(), HaltClass::Host);
        let state = StateFault {
            reason: "chunk".to_owned(),
        };
        assert_eq!(Halt::from(state).class(), HaltClass::State);
        assert_eq!(Halt::Exited { code: 1 }.class(), HaltClass::Module);
    }
}
