//! The macros that declare a module. Each makes two types beside each other: the module (a unit
//! struct) and its `Tables`; so there is one module in a Rust module.

/// Declares a reducer: a name, tables, and a handler for each kind of event.
///
/// A handler is `fn(&Tables, &Event<'_>, Payload) -> Result<(), Fault>`. The first line whose stream
/// and type match an event gets it; names end in `*` to match a prefix. `migrate => function;` at the
/// end names a `fn(&Tables, &Manifest) -> Result<(), Fault>` that takes over the tables of older code.
///
/// Instead of handlers, `on` lines can end after the type, and `batch => function;` follows: a
/// `fn(&Tables, &Batch) -> Result<(), Fault>` gets all events of a batch at once, and can write each
/// row once.
///
/// See the [crate's documentation](crate) for an example.
#[macro_export]
macro_rules! reducer {
    (
        $(#[$meta:meta])* $vis:vis $module:ident = $name:literal;
        tables { $($(#[$doc:meta])* $table:ident : Table<$key:ty, $value:ty> = $version:literal),* $(,)? }
        $(on $stream:literal / $event_type:literal ($payload:ty) => $handler:path;)+
        $(migrate => $migrate:path;)?
    ) => {
        $crate::__module!($(#[$meta])* $vis $module = $name, Reducer;
            [$($(#[$doc])* $table $key, $value, $version, "";)*]
            [$($stream, $event_type;)+]);

        impl $crate::Fold for $module {
            fn process(batch: &$crate::Batch) -> ::core::result::Result<(), $crate::Fault> {
                let tables = Self::tables();
                for event in batch.iter() {
                    let mut kind = 0u32;
                    $(
                        if event.kind() == kind {
                            let payload: $payload = event.decode()?;
                            $handler(&tables, &event, payload)?;
                            continue;
                        }
                        kind += 1;
                    )+
                    let _ = kind;
                    return Err($crate::Fault::new("the host gave an event of no handler"));
                }
                Ok(())
            }

            $crate::__migrate!($($migrate)?);
        }

        $crate::__export_reducer!($module);
    };
    (
        $(#[$meta:meta])* $vis:vis $module:ident = $name:literal;
        tables { $($(#[$doc:meta])* $table:ident : Table<$key:ty, $value:ty> = $version:literal),* $(,)? }
        $(on $stream:literal / $event_type:literal;)+
        batch => $batch:path;
        $(migrate => $migrate:path;)?
    ) => {
        $crate::__module!($(#[$meta])* $vis $module = $name, Reducer;
            [$($(#[$doc])* $table $key, $value, $version, "";)*]
            [$($stream, $event_type;)+]);

        impl $crate::Fold for $module {
            fn process(batch: &$crate::Batch) -> ::core::result::Result<(), $crate::Fault> {
                $batch(&Self::tables(), batch)
            }

            $crate::__migrate!($($migrate)?);
        }

        $crate::__export_reducer!($module);
    };
}

/// Declares a processor: as [`reducer!`], but handlers take an [`Emitter`](crate::Emitter) too:
/// `fn(&Tables, &Event<'_>, Payload, &mut Emitter) -> Result<(), Fault>`.
///
/// ```
/// use truthdb_sdk::prelude::*;
///
/// truthdb_sdk::processor! {
///     /// Says when something was late.
///     pub Late = "late";
///     tables {}
///     on "flight-*" / "landed" (String) => landed;
/// }
///
/// fn landed(_: &Tables, event: &Event<'_>, delay: String, out: &mut Emitter) -> Result<(), Fault> {
///     if delay != "0" {
///         out.emit(event.stream(), "late", "text/plain", delay.as_bytes());
///     }
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! processor {
    (
        $(#[$meta:meta])* $vis:vis $module:ident = $name:literal;
        tables { $($(#[$doc:meta])* $table:ident : Table<$key:ty, $value:ty> = $version:literal),* $(,)? }
        $(on $stream:literal / $event_type:literal ($payload:ty) => $handler:path;)+
        $(migrate => $migrate:path;)?
    ) => {
        $crate::__module!($(#[$meta])* $vis $module = $name, Processor;
            [$($(#[$doc])* $table $key, $value, $version, "";)*]
            [$($stream, $event_type;)+]);

        impl $crate::Fold for $module {
            fn process(batch: &$crate::Batch) -> ::core::result::Result<(), $crate::Fault> {
                let tables = Self::tables();
                for event in batch.iter() {
                    let mut out = $crate::Emitter::of(event.index());
                    let mut kind = 0u32;
                    $(
                        if event.kind() == kind {
                            let payload: $payload = event.decode()?;
                            $handler(&tables, &event, payload, &mut out)?;
                            continue;
                        }
                        kind += 1;
                    )+
                    let _ = kind;
                    return Err($crate::Fault::new("the host gave an event of no handler"));
                }
                Ok(())
            }

            $crate::__migrate!($($migrate)?);
        }

        $crate::__export!(processor export_processor $module {
            fn process(batch: types::EventBatch) -> Result<(), String> {
                $crate::guest::process::<$module>(batch)
            }
            fn migrate(previous: types::Manifest) -> Result<(), String> {
                $crate::guest::migrate::<$module>(previous)
            }
        });
    };
}

/// Declares a validator. A handler is `fn(&Tables, &Event<'_>, Payload) -> Result<(), Rejection>`;
/// tables belong to other modules, which are named. An event whose payload does not decode is refused.
///
/// The tables do not know the earlier events of the same batch: see [`Event::earlier`](crate::Event::earlier).
///
/// ```
/// use truthdb_sdk::prelude::*;
///
/// truthdb_sdk::validator! {
///     /// Nobody withdraws what is not there.
///     pub Covered = "covered";
///     tables {
///         totals: Table<String, u64> = 1 of "deposits",
///     }
///     on "account-*" / "withdraw" (String) => withdraw;
/// }
///
/// fn withdraw(tables: &Tables, event: &Event<'_>, amount: String) -> Result<(), Rejection> {
///     let amount: u64 = amount.parse().map_err(|_| Rejection::new(1, "the amount is no number"))?;
///     let total = tables.totals.get(&event.stream().to_owned()).unwrap_or(0);
///     if amount > total {
///         return Err(Rejection::new(2, format!("there are only {total}")));
///     }
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! validator {
    (
        $(#[$meta:meta])* $vis:vis $module:ident = $name:literal;
        tables { $($(#[$doc:meta])* $table:ident : Table<$key:ty, $value:ty> = $version:literal of $owner:literal),* $(,)? }
        $(on $stream:literal / $event_type:literal ($payload:ty) => $handler:path;)+
    ) => {
        $crate::__module!($(#[$meta])* $vis $module = $name, Validator;
            [$($(#[$doc])* $table $key, $value, $version, $owner;)*]
            [$($stream, $event_type;)+]);

        impl $crate::Validate for $module {
            fn judge(event: &$crate::Event<'_>) -> ::core::result::Result<(), $crate::Rejection> {
                let tables = Self::tables();
                let mut kind = 0u32;
                $(
                    if event.kind() == kind {
                        let payload: $payload = event.decode()?;
                        return $handler(&tables, event, payload);
                    }
                    kind += 1;
                )+
                let _ = kind;
                Err($crate::Fault::new("the host gave an event of no handler").into())
            }
        }

        $crate::__export!(validator export_validator $module {
            fn validate(batch: types::EventBatch) -> Vec<types::Verdict> {
                $crate::guest::validate::<$module>(batch)
            }
        });
    };
}

/// Declares a query operator: `run` is `fn(&Tables, Moment, &[u8], &[u8]) -> Result<Answer, Fault>`
/// (arguments, then what the last step gave to resume with), `merge` is
/// `fn(&[u8], Vec<Page>) -> Result<Page, Fault>`.
///
/// ```
/// use truthdb_sdk::prelude::*;
///
/// truthdb_sdk::query! {
///     /// The sum of all deposits.
///     pub Sum = "sum";
///     tables {
///         totals: Table<String, u64> = 1 of "deposits",
///     }
///     run => run;
///     merge => merge;
/// }
///
/// fn run(tables: &Tables, _: Moment, _: &[u8], _: &[u8]) -> Result<Answer, Fault> {
///     let sum: u64 = tables.totals.rows().map(|(_, total)| total).sum();
///     let mut page = Page::default();
///     page.push(b"sum", &sum.to_le_bytes());
///     Ok(Answer::whole(page))
/// }
///
/// fn merge(_: &[u8], parts: Vec<Page>) -> Result<Page, Fault> {
///     let mut sum = 0u64;
///     for (_, mut value) in parts.iter().flat_map(Page::rows) {
///         sum += u64::decode(&mut value).unwrap_or(0);
///     }
///     let mut page = Page::default();
///     page.push(b"sum", &sum.to_le_bytes());
///     Ok(page)
/// }
/// # use truthdb_sdk::prelude::Value as _;
/// ```
#[macro_export]
macro_rules! query {
    (
        $(#[$meta:meta])* $vis:vis $module:ident = $name:literal;
        tables { $($(#[$doc:meta])* $table:ident : Table<$key:ty, $value:ty> = $version:literal of $owner:literal),* $(,)? }
        run => $run:path;
        merge => $merge:path;
    ) => {
        $crate::__module!($(#[$meta])* $vis $module = $name, Query;
            [$($(#[$doc])* $table $key, $value, $version, $owner;)*]
            []);

        impl $crate::Query for $module {
            fn run(
                at: $crate::Moment,
                arguments: &[u8],
                resume: &[u8],
            ) -> ::core::result::Result<$crate::Answer, $crate::Fault> {
                $run(&Self::tables(), at, arguments, resume)
            }

            fn merge(
                arguments: &[u8],
                parts: ::std::vec::Vec<$crate::Page>,
            ) -> ::core::result::Result<$crate::Page, $crate::Fault> {
                $merge(arguments, parts)
            }
        }

        $crate::__export!(query export_query $module {
            fn run(
                at: types::Moment,
                arguments: Vec<u8>,
                resume: Vec<u8>,
            ) -> Result<types::Answer, String> {
                $crate::guest::run::<$module>(at, &arguments, &resume)
            }
            fn merge(arguments: Vec<u8>, parts: Vec<types::Page>) -> Result<types::Page, String> {
                $crate::guest::merge::<$module>(&arguments, parts)
            }
        });
    };
}

/// Declares a struct that is a [`Value`](crate::Value): its fields, one after another.
///
/// ```
/// truthdb_sdk::record! {
///     /// A balance.
///     #[derive(Debug, Clone, Default)]
///     pub struct Account {
///         /// Cents.
///         pub balance: i64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! record {
    (
        $(#[$meta:meta])* $vis:vis struct $name:ident {
            $($(#[$doc:meta])* $field_vis:vis $field:ident : $type:ty),* $(,)?
        }
    ) => {
        $(#[$meta])* $vis struct $name {
            $($(#[$doc])* $field_vis $field : $type,)*
        }

        impl $crate::Value for $name {
            fn encode(&self, out: &mut ::std::vec::Vec<u8>) {
                $($crate::Value::encode(&self.$field, out);)*
            }

            fn decode(bytes: &mut $crate::Cursor<'_>) -> ::core::option::Option<Self> {
                ::core::option::Option::Some(Self {
                    $($field: <$type as $crate::Value>::decode(bytes)?,)*
                })
            }
        }
    };
}

/// The module, its tables and its manifest.
#[doc(hidden)]
#[macro_export]
macro_rules! __module {
    (
        $(#[$meta:meta])* $vis:vis $module:ident = $name:literal, $kind:ident;
        [$($(#[$doc:meta])* $table:ident $key:ty, $value:ty, $version:literal, $owner:literal;)*]
        [$($stream:literal, $event_type:literal;)*]
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        $vis struct $module;

        #[doc = concat!("The tables of [`", stringify!($module), "`].")]
        #[derive(Debug)]
        $vis struct Tables {
            $(
                $(#[$doc])*
                #[doc = concat!("Table `", stringify!($table), "`, version ", $version, ".")]
                pub $table: $crate::Table<$key, $value>,
            )*
        }

        impl $module {
            /// The tables, to be read or written within a call.
            $vis fn tables() -> Tables {
                let mut next = 0u32..;
                let tables = Tables {
                    $($table: $crate::Table::at(next.next().unwrap_or(u32::MAX)),)*
                };
                let _ = next;
                tables
            }
        }

        impl $crate::Module for $module {
            fn manifest() -> $crate::Manifest {
                $crate::Manifest {
                    name: $name.to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    abi: $crate::ABI_VERSION,
                    kind: $crate::Kind::$kind,
                    subscriptions: vec![$($crate::Subscription {
                        stream: $stream.to_owned(),
                        event_type: $event_type.to_owned(),
                    },)*],
                    tables: vec![$($crate::TableDecl {
                        name: stringify!($table).replace('_', "-"),
                        version: $version,
                        module: $owner.to_owned(),
                    },)*],
                }
            }
        }
    };
}

/// The exports of a reducer.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_reducer {
    ($module:ident) => {
        $crate::__export!(reducer export_reducer $module {
            fn process(batch: types::EventBatch) -> Result<(), String> {
                $crate::guest::process::<$module>(batch)
            }
            fn migrate(previous: types::Manifest) -> Result<(), String> {
                $crate::guest::migrate::<$module>(previous)
            }
        });
    };
}

/// The module's migration, or none to do.
#[doc(hidden)]
#[macro_export]
macro_rules! __migrate {
    () => {
        fn migrate(_: &$crate::Manifest) -> ::core::result::Result<(), $crate::Fault> {
            Ok(())
        }
    };
    ($migrate:path) => {
        fn migrate(previous: &$crate::Manifest) -> ::core::result::Result<(), $crate::Fault> {
            $migrate(&Self::tables(), previous)
        }
    };
}

/// The exports of a component; nothing natively.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($world:ident $export:ident $module:ident { $($functions:tt)* }) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "generated exports")]
        const _: () = {
            use $crate::guest::bindings::processor::truthdb::module::types;

            struct Exported;

            impl $crate::guest::bindings::$world::Guest for Exported {
                fn describe() -> types::Manifest {
                    $crate::guest::describe(<$module as $crate::Module>::manifest())
                }
                $($functions)*
            }

            $crate::guest::bindings::$world::$export!(
                Exported with_types_in $crate::guest::bindings::$world
            );
        };
    };
}
