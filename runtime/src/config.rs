//! `/data/config/node.toml`: what the appliance is told besides the server's own configuration. Written by the
//! installer; every key is optional, and a key that is not known is ignored, so that an older system starts with a
//! newer file.
//!
//! A file that cannot be used never keeps the node from starting: it is said, and the defaults are taken.

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::Deserialize;

use crate::paths::System;

/// Longest host name, as DNS has it.
const HOSTNAME_BYTES_MAX: usize = 63;
/// Most partitions of a database that is made at the first start.
const PARTITIONS_MAX: u32 = 1024;

/// The configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeConfig {
    /// Host name.
    pub(crate) hostname: String,
    /// Partitions of the database that the first start makes.
    pub(crate) partitions: u32,
    /// Time servers; empty: those that DHCP names.
    pub(crate) time_servers: Vec<String>,
    /// Addresses.
    pub(crate) network: NetworkConfig,
}

/// How the node gets its address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkConfig {
    /// By DHCP, or fixed.
    pub(crate) mode: NetworkMode,
    /// Name or MAC address of the network card; empty: the first one with a link.
    pub(crate) interface: String,
    /// With mode "static": address and prefix length.
    pub(crate) address: String,
    /// With mode "static": the router; empty: none.
    pub(crate) gateway: String,
    /// Name servers; empty with mode "dhcp": those that DHCP names.
    pub(crate) dns: Vec<String>,
}

/// By DHCP, or fixed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// Ask.
    #[default]
    Dhcp,
    /// As the configuration says.
    Static,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            hostname: "truthdb".to_owned(),
            partitions: 1,
            time_servers: Vec::new(),
            network: NetworkConfig::default(),
        }
    }
}

impl NodeConfig {
    /// The configuration on the data partition, and what was wrong with it if it cannot be used.
    pub(crate) fn load(system: &System) -> (Self, Option<String>) {
        let path = system.data("config/node.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return (Self::default(), None);
            }
            Err(error) => return (Self::default(), Some(format!("config/node.toml: {error}"))),
        };
        match Self::parse(&text) {
            Ok(config) => (config, None),
            Err(error) => (
                Self::default(),
                Some(format!(
                    "config/node.toml is not used, and the defaults are taken: {error:#}"
                )),
            ),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| one_line(text, &error))?;
        let is_label = |name: &str| {
            (1..=HOSTNAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        ensure!(
            config.hostname.split('.').all(is_label) && config.hostname.len() <= HOSTNAME_BYTES_MAX,
            "hostname {:?}: letters, digits and hyphens, at most {HOSTNAME_BYTES_MAX}",
            config.hostname
        );
        ensure!(
            (1..=PARTITIONS_MAX).contains(&config.partitions),
            "partitions: 1 to {PARTITIONS_MAX}"
        );
        // Each becomes an argument of a program.
        let is_host = |name: &String| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b".:-".contains(&b);
            !name.is_empty() && !name.starts_with('-') && name.bytes().all(allowed)
        };
        ensure!(
            config.time_servers.iter().all(is_host),
            "time_servers: names and addresses"
        );
        config.network.check()?;
        Ok(config)
    }
}

/// What is wrong, and in which line: the text of the error itself has several lines.
fn one_line(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let what = error.message().replace('\n', " ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => anyhow!("line {}: {what}", before.split('\n').count()),
        None => anyhow!("{what}"),
    }
}

impl NetworkConfig {
    fn check(&self) -> Result<()> {
        if self.mode == NetworkMode::Static {
            let (address, prefix) = self
                .address
                .split_once('/')
                .context("network.address: an address and a prefix length, as in 192.0.2.10/24")?;
            let address: std::net::IpAddr = address.parse().context("network.address")?;
            let prefix: u8 = prefix
                .parse()
                .context("network.address: the prefix length")?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            ensure!(
                prefix <= most,
                "network.address: the prefix length is at most {most}"
            );
        }
        let addresses = self.dns.iter().chain(Some(&self.gateway));
        for address in addresses.filter(|address| !address.is_empty()) {
            let parsed: Result<std::net::IpAddr, _> = address.parse();
            parsed.with_context(|| format!("network: {address:?} is no address"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_means_the_defaults_and_nothing_to_say() {
        let folder = tempfile::tempdir().unwrap();
        let loaded = NodeConfig::load(&System::at(folder.path()));
        assert_eq!(loaded, (NodeConfig::default(), None));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_said_and_the_defaults_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.data("config")).unwrap();
        let text = "partitions = 2\nhostname = 7\n";
        std::fs::write(system.data("config/node.toml"), text).unwrap();
        let (config, problem) = NodeConfig::load(&system);
        assert_eq!(config, NodeConfig::default());
        let problem = problem.unwrap();
        assert!(
            problem.contains("not used") && problem.contains("line 2: "),
            "{problem}"
        );
        assert!(!problem.contains('\n'), "{problem}");
    }

    #[test]
    fn keys_of_a_later_version_are_ignored() {
        let text = "hostname = 'a'\nlater = 1\n[network]\nmode = 'dhcp'\nmtu = 9000\n";
        assert_eq!(NodeConfig::parse(text).unwrap().hostname, "a");
    }

    #[test]
    fn what_would_become_a_strange_argument_is_refused() {
        for text in [
            "hostname = 'a b'",
            "hostname = ''",
            "partitions = 0",
            "time_servers = ['-x']",
            "time_servers = ['a;b']",
            "[network]\nmode = 'static'\naddress = '192.0.2.1'",
            "[network]\nmode = 'static'\naddress = '192.0.2.1/33'",
            "[network]\ngateway = 'router'",
            "[network]\nmode = 'magic'",
        ] {
            assert!(NodeConfig::parse(text).is_err(), "{text}");
        }
        let text =
            "[network]\nmode = 'static'\naddress = '2001:db8::1/64'\ngateway = '2001:db8::2'";
        assert!(NodeConfig::parse(text).is_ok());
    }
}
