//! TruthDB's wire contracts: everything that a server and a client must agree on, and nothing else.
//!
//! Three parts: [`v1`], the types and services generated from `proto/truthdb/v1/truthdb.proto`;
//! [`native`], the framed binary protocol that carries canonical event bytes; [`error`], the one
//! list of failures, which both of them and HTTP/JSON carry.
//!
//! Invariants: decoders are total (any bytes give a value or an error, never a panic, and never an
//! allocation larger than the input justifies); what an encoder writes its decoder reads back equal;
//! an error keeps its code, its outcome and its numbers over every protocol.
//!
//! This crate does no I/O, knows no socket and no clock, and decides nothing about events: whether
//! event bytes are well-formed is the business of `truthdb-event`.

pub mod error;
pub mod native;

pub use error::{ApiError, ErrorCode, Outcome};

/// Types and services of package `truthdb.v1`, generated from the `.proto` file.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::large_stack_frames,
    clippy::default_trait_access,
    reason = "generated code; what it means is documented in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("truthdb.v1");
}

/// The serialised descriptors of package `truthdb.v1`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/truthdb.v1.bin"));

/// Bytes of the largest gRPC message that either side accepts: a full batch fits with room to spare.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of a cursor's name. Its stream is `$cursor/<name>`, which must be a legal stream name.
pub const CURSOR_NAME_BYTES_MAX: usize = 247;

/// Alternatives of a filter or an append condition.
pub const FILTER_MATCHES_MAX: usize = 32;

/// Types, and also tags, of one alternative.
pub const FILTER_NAMES_MAX: usize = 32;

/// Stream expectations of one append.
pub const EXPECTATIONS_MAX: usize = 1024;
