//! Who may do what: one table of every RPC, route and frame, and one function that enforces it.
//!
//! Nothing reaches a handler past [`Access::admit`]: the middleware of the gRPC and HTTP port looks
//! the request up here and refuses what it does not find, and the native connection asks for each
//! frame. A test walks the table against the descriptor set, the routes and the frame kinds.
//!
//! What goes on after it was admitted, a streaming answer, holds its [`Standing`], which says when
//! the token that began it no longer allows it.

use std::sync::Arc;

use tokio::sync::watch;
use truthdb_api::{ApiError, ErrorCode};

use super::config::Role;
use super::tokens::{Permission, Principal, TokenStore};

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing, not even a token.
    Nothing,
    /// Any valid token.
    Token,
    /// A token with this permission.
    Permission(Permission),
}

/// How a request comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// A gRPC method, by its path.
    Grpc(&'static str),
    /// An HTTP route, by method and path pattern.
    Http(&'static str, &'static str),
    /// A frame of the native protocol, by its kind.
    Native(&'static str),
}

/// One operation of the interface.
#[derive(Debug)]
pub(crate) struct Operation {
    /// How it comes in.
    pub door: Door,
    /// What the caller needs.
    pub need: Need,
    /// The role the node needs.
    pub role: Option<Role>,
}

const fn grpc(path: &'static str, need: Need, role: Option<Role>) -> Operation {
    Operation {
        door: Door::Grpc(path),
        need,
        role,
    }
}

const fn get(path: &'static str, need: Need, role: Option<Role>) -> Operation {
    Operation {
        door: Door::Http("GET", path),
        need,
        role,
    }
}

const fn post(path: &'static str, need: Need, role: Option<Role>) -> Operation {
    Operation {
        door: Door::Http("POST", path),
        need,
        role,
    }
}

const fn native(kind: &'static str, need: Need, role: Option<Role>) -> Operation {
    Operation {
        door: Door::Native(kind),
        need,
        role,
    }
}

const APPEND: Need = Need::Permission(Permission::Append);
const READ: Need = Need::Permission(Permission::Read);
const STATE: Need = Need::Permission(Permission::Query);
const DEPLOY: Need = Need::Permission(Permission::Deploy);
const ADMIN: Need = Need::Permission(Permission::Admin);
const INGEST: Option<Role> = Some(Role::Ingest);
const COMPUTE: Option<Role> = Some(Role::Compute);
const QUERY: Option<Role> = Some(Role::Query);
const REPLAY: Option<Role> = Some(Role::Replay);

/// Every operation of the interface.
pub(crate) const OPERATIONS: &[Operation] = &[
    grpc("/truthdb.v1.Log/GetDatabase", Need::Token, None),
    grpc("/truthdb.v1.Log/Append", APPEND, INGEST),
    grpc("/truthdb.v1.Log/AppendStream", APPEND, INGEST),
    grpc("/truthdb.v1.Log/Read", READ, QUERY),
    grpc("/truthdb.v1.Log/Subscribe", READ, QUERY),
    grpc("/truthdb.v1.Log/GetStreamHead", READ, QUERY),
    grpc("/truthdb.v1.Log/CursorGet", READ, QUERY),
    grpc("/truthdb.v1.Log/CursorCommit", APPEND, INGEST),
    grpc("/truthdb.v1.Log/CursorList", READ, QUERY),
    grpc("/truthdb.v1.Log/ListStreams", READ, QUERY),
    grpc("/truthdb.v1.Admin/Status", ADMIN, None),
    grpc("/truthdb.v1.Admin/Verify", ADMIN, REPLAY),
    grpc("/truthdb.v1.Admin/Prove", ADMIN, REPLAY),
    grpc("/truthdb.v1.Admin/Trim", ADMIN, INGEST),
    grpc("/truthdb.v1.Admin/Backup", ADMIN, REPLAY),
    grpc("/truthdb.v1.Modules/Publish", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/Activate", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/Halt", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/Resume", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/Skip", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/Remove", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/List", STATE, None),
    grpc("/truthdb.v1.Modules/Get", STATE, None),
    grpc("/truthdb.v1.Modules/ListSnapshots", STATE, None),
    grpc("/truthdb.v1.Modules/TakeSnapshot", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.Modules/PruneSnapshots", DEPLOY, COMPUTE),
    grpc("/truthdb.v1.State/Get", STATE, QUERY),
    grpc("/truthdb.v1.State/Scan", STATE, QUERY),
    grpc("/truthdb.v1.State/Query", STATE, QUERY),
    grpc("/truthdb.v1.State/Verify", ADMIN, REPLAY),
    grpc("/grpc.health.v1.Health/Check", Need::Nothing, None),
    grpc("/grpc.health.v1.Health/Watch", Need::Nothing, None),
    grpc(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Need::Token,
        None,
    ),
    get("/healthz", Need::Nothing, None),
    get("/readyz", Need::Nothing, None),
    get("/openapi.json", Need::Nothing, None),
    get("/metrics", READ, None),
    get("/v1/database", Need::Token, None),
    post("/v1/append", APPEND, INGEST),
    get("/v1/partitions/{partition}/events", READ, QUERY),
    get("/v1/partitions/{partition}/streams", READ, QUERY),
    get("/v1/partitions/{partition}/cursors", READ, QUERY),
    get("/v1/partitions/{partition}/cursors/{name}", READ, QUERY),
    post("/v1/partitions/{partition}/cursors/{name}", APPEND, INGEST),
    get(
        "/v1/partitions/{partition}/events/{sequence}/proof",
        ADMIN,
        REPLAY,
    ),
    post("/v1/partitions/{partition}/trim", ADMIN, INGEST),
    get("/v1/streams/{stream}/events", READ, QUERY),
    get("/v1/streams/{stream}/head", READ, QUERY),
    get("/v1/subscribe", READ, QUERY),
    get("/v1/status", ADMIN, None),
    get("/v1/modules", STATE, None),
    post("/v1/modules", DEPLOY, COMPUTE),
    get("/v1/modules/{module}", STATE, None),
    post("/v1/modules/{module}/activate", DEPLOY, COMPUTE),
    post("/v1/modules/{module}/halt", DEPLOY, COMPUTE),
    post("/v1/modules/{module}/resume", DEPLOY, COMPUTE),
    post("/v1/modules/{module}/skip", DEPLOY, COMPUTE),
    post("/v1/modules/{module}/remove", DEPLOY, COMPUTE),
    get("/v1/snapshots", STATE, None),
    post("/v1/snapshots", DEPLOY, COMPUTE),
    post("/v1/snapshots/prune", DEPLOY, COMPUTE),
    get("/v1/state/{module}/{table}/row", STATE, QUERY),
    get("/v1/state/{module}/{table}/rows", STATE, QUERY),
    post("/v1/query/{operator}", STATE, QUERY),
    native("Hello", Need::Token, None),
    native("Append", APPEND, INGEST),
    native("Read", READ, QUERY),
    native("Subscribe", READ, QUERY),
    native("StreamHead", READ, QUERY),
    native("CursorGet", READ, QUERY),
    native("Credit", Need::Token, None),
    native("Cancel", Need::Token, None),
    native("Ping", Need::Token, None),
];

/// The operation of a gRPC path.
pub(crate) fn grpc_operation(path: &str) -> Option<&'static Operation> {
    OPERATIONS
        .iter()
        .find(|operation| matches!(operation.door, Door::Grpc(own) if own == path))
}

/// The operation of an HTTP route.
pub(crate) fn http_operation(method: &str, pattern: &str) -> Option<&'static Operation> {
    OPERATIONS
        .iter()
        .find(|operation| matches!(operation.door, Door::Http(m, p) if m == method && p == pattern))
}

/// The operation of a frame of the native protocol.
///
/// # Panics
///
/// If the kind is not in the table: kinds come from the code.
pub(crate) fn native_operation(kind: &str) -> &'static Operation {
    OPERATIONS
        .iter()
        .find(|operation| matches!(operation.door, Door::Native(k) if k == kind))
        .expect("every kind of frame that a handler asks for is in the table")
}

/// Decides about requests.
pub(crate) struct Access {
    tokens: Option<Arc<TokenStore>>,
    roles: Vec<Role>,
}

impl Access {
    /// Access for a node with these roles; without tokens everybody may do everything.
    pub(crate) fn new(tokens: Option<Arc<TokenStore>>, roles: Vec<Role>) -> Access {
        Access { tokens, roles }
    }

    /// The store of tokens, when they are demanded.
    pub(crate) fn tokens(&self) -> Option<&Arc<TokenStore>> {
        self.tokens.as_ref()
    }

    /// The one door: who the caller is, whether that is enough, and whether the node does this. What
    /// lasts longer than one answer has to end when the standing does.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED`, `PERMISSION_DENIED`, `OVERLOADED` (too many failed tokens) and
    /// `ROLE_DISABLED`, checked in this order.
    pub(crate) async fn admit(
        &self,
        operation: &'static Operation,
        token: Option<&[u8]>,
    ) -> Result<Standing, ApiError> {
        let mut standing = Standing { bound: None };
        if let Some(tokens) = &self.tokens
            && operation.need != Need::Nothing
        {
            // Before the token is looked at, so that no change is missed in between.
            let changes = tokens.changes();
            let principal = tokens.verify(token).await?;
            Self::check_permission(operation, &principal)?;
            standing.bound = Some(Bound {
                tokens: Arc::clone(tokens),
                token: token.unwrap_or_default().to_vec(),
                operation,
                changes,
            });
        }
        self.check_role(operation)?;
        Ok(standing)
    }

    /// The same for a caller that was recognised before: a connection of the native protocol.
    pub(crate) fn admit_principal(
        &self,
        operation: &Operation,
        principal: Option<&Principal>,
    ) -> Result<(), ApiError> {
        if let (Some(_), Some(principal)) = (&self.tokens, principal) {
            Self::check_permission(operation, principal)?;
        }
        self.check_role(operation)
    }

    fn check_permission(operation: &Operation, principal: &Principal) -> Result<(), ApiError> {
        let Need::Permission(permission) = operation.need else {
            return Ok(());
        };
        if principal.may(permission) {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::PermissionDenied,
            format!(
                "token {} does not have the permission `{}`",
                principal.name(),
                permission.name()
            ),
        ))
    }

    fn check_role(&self, operation: &Operation) -> Result<(), ApiError> {
        match operation.role {
            Some(role) if !self.roles.contains(&role) => Err(ApiError::role_disabled(role.name())),
            _ => Ok(()),
        }
    }
}

/// The right to go on with what was admitted.
#[derive(Clone)]
pub(crate) struct Standing {
    /// `None`: it never ends, because no tokens are demanded.
    bound: Option<Bound>,
}

#[derive(Clone)]
struct Bound {
    tokens: Arc<TokenStore>,
    token: Vec<u8>,
    operation: &'static Operation,
    changes: watch::Receiver<u64>,
}

impl Standing {
    /// Waits until the token no longer allows the operation, and says why: it was revoked, or lost the
    /// permission.
    pub(crate) async fn ended(self) -> ApiError {
        let Some(mut bound) = self.bound else {
            return std::future::pending().await;
        };
        // An error means that the store is gone with the server, which ends everything itself.
        while bound.changes.changed().await.is_ok() {
            if let Err(error) = bound.check().await {
                return error;
            }
        }
        std::future::pending().await
    }
}

impl Bound {
    async fn check(&self) -> Result<(), ApiError> {
        let verified = self.tokens.verify(Some(&self.token)).await;
        let principal = verified.map_err(|error| match error.code {
            ErrorCode::Unauthenticated => ApiError::new(
                ErrorCode::Unauthenticated,
                "the token was revoked while the answer was under way",
            ),
            _ => error,
        })?;
        Access::check_permission(self.operation, &principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn every_method_of_the_descriptors_is_in_the_table_and_the_other_way_round() {
        let mut methods = Vec::new();
        for bytes in [
            truthdb_api::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ] {
            let set = prost_types::FileDescriptorSet::decode(bytes).unwrap();
            for file in set.file {
                for service in &file.service {
                    methods.extend(service.method.iter().map(|method| {
                        format!("/{}.{}/{}", file.package(), service.name(), method.name())
                    }));
                }
            }
        }
        for method in &methods {
            assert!(
                grpc_operation(method).is_some(),
                "{method} is not in the table"
            );
        }
        for operation in OPERATIONS {
            if let Door::Grpc(path) = operation.door {
                assert!(
                    methods.iter().any(|method| method == path),
                    "{path} does not exist"
                );
            }
        }
    }

    #[test]
    fn every_kind_of_frame_that_a_client_sends_is_in_the_table_and_the_other_way_round() {
        // A server's kinds have bit 7 set; what is below decodes to a kind or is unknown.
        let mut known = Vec::new();
        for kind in 0..0x40 {
            let payload = bytes::Bytes::new();
            let raw = truthdb_api::native::RawFrame {
                kind,
                request_id: 1,
                payload,
            };
            let outcome = truthdb_api::native::ClientFrame::decode(raw);
            if !matches!(
                outcome,
                Err(truthdb_api::native::DecodeError::UnknownKind { .. })
            ) {
                known.push(kind);
            }
        }
        use truthdb_api::native::Kind;
        let kinds = [
            (Kind::Hello, "Hello"),
            (Kind::Append, "Append"),
            (Kind::Read, "Read"),
            (Kind::Subscribe, "Subscribe"),
            (Kind::Credit, "Credit"),
            (Kind::Cancel, "Cancel"),
            (Kind::Ping, "Ping"),
            (Kind::StreamHead, "StreamHead"),
            (Kind::CursorGet, "CursorGet"),
        ];
        assert_eq!(known, kinds.map(|(kind, _)| kind as u8));
        for (_, name) in kinds {
            assert_eq!(native_operation(name).door, Door::Native(name));
        }
        let native = |one: &&Operation| matches!(one.door, Door::Native(_));
        assert_eq!(OPERATIONS.iter().filter(native).count(), kinds.len());
    }

    #[test]
    fn no_operation_is_listed_twice() {
        for (index, operation) in OPERATIONS.iter().enumerate() {
            let twice = OPERATIONS[..index]
                .iter()
                .any(|other| other.door == operation.door);
            assert!(!twice, "{:?}", operation.door);
        }
    }
}
