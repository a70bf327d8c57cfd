//! `truthdb bench`: measure this machine and this server.

pub(crate) use crate::bench::{Args, run};
