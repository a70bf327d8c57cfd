//! What can be set about a node besides its disk, with the checks on each value.

use std::net::IpAddr;

/// Most database partitions that the installer makes.
pub const PARTITIONS_MAX: u32 = 256;
/// Characters of a value that is typed, at most.
const VALUE_CHARS_MAX: usize = 120;

/// How the network is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Whatever the network's DHCP server says.
    Dhcp,
    /// Fixed.
    Static {
        /// Address and prefix length, as `192.0.2.10/24`.
        address: String,
        /// Router; may be empty.
        gateway: String,
        /// Name server; may be empty.
        dns: String,
    },
}

/// What can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub hostname: String,
    /// Its network.
    pub network: Network,
    /// Partitions of the database; fixed for ever when it is made.
    pub partitions: u32,
    /// Where it gets the time from; empty for nowhere.
    pub time_server: String,
    /// Whether the node's state is shown on its serial port too.
    pub serial_console: bool,
}

/// The fields of the form, in the order of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The node's name.
    Hostname,
    /// DHCP, or an address.
    Address,
    /// Router.
    Gateway,
    /// Name server.
    Dns,
    /// Partitions of the database.
    Partitions,
    /// Time server.
    TimeServer,
    /// Serial console.
    SerialConsole,
}

impl Field {
    /// All fields.
    pub const ALL: [Field; 7] = [
        Field::Hostname,
        Field::Address,
        Field::Gateway,
        Field::Dns,
        Field::Partitions,
        Field::TimeServer,
        Field::SerialConsole,
    ];

    /// What the screen calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Field::Hostname => "Name of the node",
            Field::Address => "Address",
            Field::Gateway => "Router",
            Field::Dns => "Name server",
            Field::Partitions => "Database partitions",
            Field::TimeServer => "Time server",
            Field::SerialConsole => "Serial console",
        }
    }

    /// What may be typed.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Field::Hostname => "letters, digits and -",
            Field::Address => "dhcp, or an address such as 192.0.2.10/24",
            Field::Gateway => "an address; empty for none",
            Field::Dns => "an address; empty for none",
            Field::Partitions => "1 to 256; fixed for ever",
            Field::TimeServer => "a name or address, with :port if not 123",
            Field::SerialConsole => "yes or no",
        }
    }
}

/// The form while it is filled in: texts, which need not be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    values: [String; Field::ALL.len()],
    /// The field that takes keys.
    pub focus: usize,
}

impl Form {
    /// The form with these settings.
    #[must_use]
    pub fn of(settings: &Settings) -> Form {
        let (address, gateway, dns) = match &settings.network {
            Network::Dhcp => ("dhcp".to_owned(), String::new(), String::new()),
            Network::Static {
                address,
                gateway,
                dns,
            } => (address.clone(), gateway.clone(), dns.clone()),
        };
        let console = if settings.serial_console { "yes" } else { "no" };
        Form {
            values: [
                settings.hostname.clone(),
                address,
                gateway,
                dns,
                settings.partitions.to_string(),
                settings.time_server.clone(),
                console.to_owned(),
            ],
            focus: 0,
        }
    }

    /// The text of each field.
    pub fn fields(&self) -> impl Iterator<Item = (Field, &str)> {
        Field::ALL
            .into_iter()
            .zip(self.values.iter().map(String::as_str))
    }

    /// Adds a character to the field with the focus.
    pub fn type_char(&mut self, c: char) {
        let value = &mut self.values[self.focus];
        if !c.is_control() && value.chars().count() < VALUE_CHARS_MAX {
            value.push(c);
        }
    }

    /// Removes the last character of the field with the focus.
    pub fn erase_char(&mut self) {
        self.values[self.focus].pop();
    }

    /// Empties the field with the focus.
    pub fn clear(&mut self) {
        self.values[self.focus].clear();
    }

    /// Moves the focus.
    pub fn move_focus(&mut self, forward: bool) {
        let count = Field::ALL.len();
        let step = if forward { 1 } else { count - 1 };
        self.focus = (self.focus + step) % count;
    }

    fn value(&self, field: Field) -> &str {
        let at = Field::ALL.iter().position(|other| *other == field);
        self.values[at.unwrap_or(0)].trim()
    }

    /// What is wrong with a field, if anything.
    #[must_use]
    pub fn error(&self, field: Field) -> Option<String> {
        let value = self.value(field);
        let wrong = |right: bool, text: &str| (!right).then(|| text.to_owned());
        match field {
            Field::Hostname => wrong(is_hostname(value), "1 to 63 letters, digits and -"),
            Field::Address => wrong(
                value.eq_ignore_ascii_case("dhcp") || is_prefixed_address(value),
                "dhcp, or an address with its prefix length, as 192.0.2.10/24",
            ),
            Field::Gateway | Field::Dns => wrong(
                value.is_empty() || value.parse::<IpAddr>().is_ok(),
                "an IP address, or nothing",
            ),
            Field::Partitions => wrong(
                value
                    .parse::<u32>()
                    .is_ok_and(|count| (1..=PARTITIONS_MAX).contains(&count)),
                "a number from 1 to 256",
            ),
            Field::TimeServer => wrong(
                value.is_empty() || is_time_server(value),
                "a host's name or address, or nothing",
            ),
            Field::SerialConsole => wrong(yes_or_no(value).is_some(), "yes or no"),
        }
    }

    /// The settings, if every field is right.
    ///
    /// # Errors
    ///
    /// The first field that is not, and why.
    pub fn settings(&self) -> Result<Settings, (Field, String)> {
        for field in Field::ALL {
            if let Some(error) = self.error(field) {
                return Err((field, error));
            }
        }
        let address = self.value(Field::Address);
        let network = if address.eq_ignore_ascii_case("dhcp") {
            Network::Dhcp
        } else {
            Network::Static {
                address: address.to_owned(),
                gateway: self.value(Field::Gateway).to_owned(),
                dns: self.value(Field::Dns).to_owned(),
            }
        };
        Ok(Settings {
            hostname: self.value(Field::Hostname).to_ascii_lowercase(),
            network,
            partitions: self.value(Field::Partitions).parse().unwrap_or(1),
            time_server: self.value(Field::TimeServer).to_owned(),
            serial_console: yes_or_no(self.value(Field::SerialConsole)).unwrap_or(true),
        })
    }

    /// Puts a text into a field, as an answer file does.
    pub fn set(&mut self, field: Field, text: &str) {
        if let Some(at) = Field::ALL.iter().position(|other| *other == field) {
            self.values[at] = text
                .chars()
                .filter(|c| !c.is_control())
                .take(VALUE_CHARS_MAX)
                .collect();
        }
    }
}

fn yes_or_no(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" => Some(true),
        "no" | "n" => Some(false),
        _ => None,
    }
}

fn is_hostname(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_domain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_hostname)
}

/// A host, with a port behind a colon if it is not the usual one.
fn is_time_server(text: &str) -> bool {
    let is_host = |host: &str| host.parse::<IpAddr>().is_ok() || is_domain(host);
    let with_port = text.rsplit_once(':');
    is_host(text)
        || with_port.is_some_and(|(host, port)| {
            is_domain(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

fn is_prefixed_address(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(prefix)) => (1..=32).contains(&prefix),
        (Ok(IpAddr::V6(_)), Ok(prefix)) => (1..=128).contains(&prefix),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings {
            hostname: "truthdb-1".into(),
            network: Network::Dhcp,
            partitions: 4,
            time_server: "pool.ntp.org".into(),
            serial_console: true,
        }
    }

    #[test]
    fn settings_survive_the_form() {
        let fixed = Settings {
            network: Network::Static {
                address: "2001:db8::5/64".into(),
                gateway: "2001:db8::1".into(),
                dns: String::new(),
            },
            serial_console: false,
            time_server: "192.0.2.1:1123".into(),
            ..settings()
        };
        for settings in [settings(), fixed] {
            assert_eq!(Form::of(&settings).settings(), Ok(settings));
        }
    }

    #[test]
    fn wrong_values_are_refused_where_they_are() {
        for (field, values) in [
            (Field::Hostname, &["", "-a", "a b", "a.b"][..]),
            (Field::Address, &["", "10.0.0.1", "10.0.0.1/33", "dhcp6"]),
            (Field::Gateway, &["here"]),
            (Field::Partitions, &["0", "257", "-1", "x"]),
            (
                Field::TimeServer,
                &["a..b", "a b", "a:", "a:0", "a:x", ":1"],
            ),
            (Field::SerialConsole, &["maybe", ""]),
        ] {
            for value in values {
                let mut form = Form::of(&settings());
                form.set(field, value);
                assert_eq!(form.settings().unwrap_err().0, field, "{value}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_form(texts in prop::collection::vec(".*", 7)) {
            let mut form = Form::of(&settings());
            for (field, text) in Field::ALL.into_iter().zip(&texts) {
                form.set(field, text);
            }
            let _ = form.settings();
        }
    }
}
