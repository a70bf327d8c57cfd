//! One module for each command: `Args`, what it takes, and `run`, what it does.

pub(crate) mod append;
pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod cursor;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod prove;
pub(crate) mod read;
pub(crate) mod repair;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod subscribe;
pub(crate) mod token;
pub(crate) mod trim;
pub(crate) mod verify;
