//! What is known of the node, as plain values.

use crate::addresses::Addresses;

/// How the server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// Every partition serves.
    Ready,
    /// The server answers, and something does not serve. What.
    Degraded(String),
    /// The server does not answer. Why.
    Down(String),
    /// A look at the node does not end.
    Unknown,
}

/// What the parts of the node say is wrong with them, in words; empty while all is well.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Problems {
    /// The data partition.
    pub(crate) data: String,
    /// Starting the server.
    pub(crate) server: String,
    /// The node's configuration.
    pub(crate) node: String,
    /// The network.
    pub(crate) network: String,
    /// The clock.
    pub(crate) time: String,
}

/// What is known of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// Version of the system.
    pub(crate) version: String,
    /// Where it can be reached.
    pub(crate) addresses: Addresses,
    /// What is said while it has no address.
    pub(crate) no_address: String,
    /// Whom its time client asks, in words.
    pub(crate) time_servers: String,
    /// How the server does.
    pub(crate) health: Health,
    /// What is wrong.
    pub(crate) problems: Problems,
    /// The database's partitions, with the state of each.
    pub(crate) partitions: Vec<(u64, String)>,
    /// Events of all partitions, as far as the server says.
    pub(crate) events: Option<u64>,
    /// Events a second since the last look.
    pub(crate) events_a_second: Option<u64>,
    /// Bytes of the data partition: free and in all.
    pub(crate) disk: Option<(u64, u64)>,
    /// The time by the machine's clock, in words.
    pub(crate) time: String,
    /// What the server shows once, at its first start: an access token. Empty on a node that was installed.
    pub(crate) shown_once: String,
    /// The node's last messages.
    pub(crate) log: Vec<String>,
}
