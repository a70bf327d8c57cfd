//! One module for each command: `Args`, what it takes, and `run`, what it does.

pub(crate) mod append;
pub(crate) mod backup;
mod backup_set;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
mod connect;
pub(crate) mod cursor;
mod event_json;
mod event_lines;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod module;
mod module_show;
mod offline;
pub(crate) mod output;
pub(crate) mod prove;
pub(crate) mod query;
pub(crate) mod read;
pub(crate) mod repair;
pub(crate) mod replay;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod subscribe;
pub(crate) mod token;
pub(crate) mod trim;
pub(crate) mod verify;

/// A message with the messages of its causes, for where it is a part of another message.
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
