//! The glue between the generated bindings and the SDK's types, in guests only.
//!
//! Lists move between the two without a copy.

use crate::{
    Batch, Fold, Kind, Level, Manifest, Moment, Page, Query, Subscription, TableDecl, Validate,
};

/// Bindings generated from `wit/module.wit`. The interfaces are generated once and shared.
#[allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    reason = "generated code"
)]
pub mod bindings {
    pub mod processor {
        wit_bindgen::generate!({
            world: "processor",
            path: "wit",
            pub_export_macro: true,
            export_macro_name: "export_processor",
            generate_unused_types: true,
        });
    }
    pub mod reducer {
        wit_bindgen::generate!({
            world: "reducer",
            path: "wit",
            pub_export_macro: true,
            export_macro_name: "export_reducer",
            with: {
                "truthdb:module/types@0.1.0": crate::guest::bindings::processor::truthdb::module::types,
                "truthdb:module/log@0.1.0": crate::guest::bindings::processor::truthdb::module::log,
                "truthdb:module/state-read@0.1.0": crate::guest::bindings::processor::truthdb::module::state_read,
                "truthdb:module/state-write@0.1.0": crate::guest::bindings::processor::truthdb::module::state_write,
            },
        });
    }
    pub mod validator {
        wit_bindgen::generate!({
            world: "validator",
            path: "wit",
            pub_export_macro: true,
            export_macro_name: "export_validator",
            with: {
                "truthdb:module/types@0.1.0": crate::guest::bindings::processor::truthdb::module::types,
                "truthdb:module/log@0.1.0": crate::guest::bindings::processor::truthdb::module::log,
                "truthdb:module/state-read@0.1.0": crate::guest::bindings::processor::truthdb::module::state_read,
            },
        });
    }
    pub mod query {
        wit_bindgen::generate!({
            world: "query",
            path: "wit",
            pub_export_macro: true,
            export_macro_name: "export_query",
            with: {
                "truthdb:module/types@0.1.0": crate::guest::bindings::processor::truthdb::module::types,
                "truthdb:module/log@0.1.0": crate::guest::bindings::processor::truthdb::module::log,
                "truthdb:module/state-read@0.1.0": crate::guest::bindings::processor::truthdb::module::state_read,
            },
        });
    }
}

use bindings::processor::truthdb::module::{
    emit as emit_import, log as log_import, state_read, state_write, types,
};

pub(crate) fn get(table: u32, key: &[u8]) -> Option<Vec<u8>> {
    state_read::get(table, key)
}

pub(crate) fn scan(
    table: u32,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u32,
    reverse: bool,
) -> Page {
    page_from(state_read::scan(table, &range(start, end), limit, reverse))
}

pub(crate) fn set(table: u32, key: &[u8], value: &[u8]) {
    state_write::set(table, key, value);
}

pub(crate) fn delete(table: u32, key: &[u8]) -> bool {
    state_write::delete(table, key)
}

pub(crate) fn delete_range(table: u32, start: &[u8], end: Option<&[u8]>) -> u64 {
    state_write::delete_range(table, &range(start, end))
}

pub(crate) fn emit(
    source: u32,
    stream: &str,
    event_type: &str,
    content_type: &str,
    payload: &[u8],
) {
    emit_import::emit(source, stream, event_type, content_type, payload);
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Trace => types::Level::Trace,
        Level::Debug => types::Level::Debug,
        Level::Info => types::Level::Info,
        Level::Warn => types::Level::Warn,
        Level::Error => types::Level::Error,
    };
    log_import::write(level, message);
}

fn range(start: &[u8], end: Option<&[u8]>) -> types::KeyRange {
    types::KeyRange {
        start: start.to_vec(),
        end: end.map(<[u8]>::to_vec),
    }
}

fn page_from(page: types::Page) -> Page {
    Page {
        ends: page.ends,
        data: page.data,
        more: page.more,
    }
}

fn page_into(page: Page) -> types::Page {
    types::Page {
        ends: page.ends,
        data: page.data,
        more: page.more,
    }
}

fn batch_from(batch: types::EventBatch) -> Batch {
    Batch {
        sequences: batch.sequences,
        times: batch.times,
        revisions: batch.revisions,
        kinds: batch.kinds,
        ends: batch.ends,
        data: batch.data,
    }
}

fn manifest_from(manifest: types::Manifest) -> Manifest {
    Manifest {
        name: manifest.name,
        version: manifest.version,
        abi: manifest.abi,
        kind: match manifest.kind {
            types::Kind::Validator => Kind::Validator,
            types::Kind::Reducer => Kind::Reducer,
            types::Kind::Processor => Kind::Processor,
            types::Kind::Query => Kind::Query,
        },
        subscriptions: manifest
            .subscriptions
            .into_iter()
            .map(|wanted| Subscription {
                stream: wanted.stream,
                event_type: wanted.event_type,
            })
            .collect(),
        tables: manifest
            .tables
            .into_iter()
            .map(|table| TableDecl {
                name: table.name,
                version: table.version,
                module: table.module,
            })
            .collect(),
    }
}

/// What `describe` answers.
pub fn describe(manifest: Manifest) -> types::Manifest {
    types::Manifest {
        name: manifest.name,
        version: manifest.version,
        abi: manifest.abi,
        kind: match manifest.kind {
            Kind::Validator => types::Kind::Validator,
            Kind::Reducer => types::Kind::Reducer,
            Kind::Processor => types::Kind::Processor,
            Kind::Query => types::Kind::Query,
        },
        subscriptions: manifest
            .subscriptions
            .into_iter()
            .map(|wanted| types::Subscription {
                stream: wanted.stream,
                event_type: wanted.event_type,
            })
            .collect(),
        tables: manifest
            .tables
            .into_iter()
            .map(|table| types::TableDecl {
                name: table.name,
                version: table.version,
                module: table.module,
            })
            .collect(),
    }
}

/// A whole batch through the handlers.
pub fn process<M: Fold>(batch: types::EventBatch) -> Result<(), String> {
    M::process(&batch_from(batch)).map_err(|fault| fault.reason().to_owned())
}

/// The module's migration.
pub fn migrate<M: Fold>(previous: types::Manifest) -> Result<(), String> {
    M::migrate(&manifest_from(previous)).map_err(|fault| fault.reason().to_owned())
}

/// A verdict for each event.
pub fn validate<M: Validate>(batch: types::EventBatch) -> Vec<types::Verdict> {
    let batch = batch_from(batch);
    batch
        .iter()
        .map(|event| match M::judge(&event) {
            Ok(()) => types::Verdict::Accept,
            Err(rejection) => types::Verdict::Reject(types::Rejection {
                code: rejection.code,
                message: rejection.message,
            }),
        })
        .collect()
}

/// One step of a query.
pub fn run<M: Query>(
    at: types::Moment,
    arguments: &[u8],
    resume: &[u8],
) -> Result<types::Answer, String> {
    let at = Moment {
        sequence: at.sequence,
        time: at.time,
    };
    let answer = M::run(at, arguments, resume).map_err(|fault| fault.reason().to_owned())?;
    Ok(types::Answer {
        rows: page_into(answer.rows),
        resume: answer.resume,
    })
}

/// The answer from all partitions.
pub fn merge<M: Query>(arguments: &[u8], parts: Vec<types::Page>) -> Result<types::Page, String> {
    let parts = parts.into_iter().map(page_from).collect();
    M::merge(arguments, parts)
        .map(page_into)
        .map_err(|fault| fault.reason().to_owned())
}
