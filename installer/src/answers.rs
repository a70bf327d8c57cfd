//! The answer file of an unattended installation, and the same keys on the kernel's command line.
//!
//! ```toml
//! disk = "S5GXNF0R900140"      # serial number or WWN; no path, no "first disk"
//! wipe = true                  # without it the installer stops and asks
//! mode = "install"             # or "reinstall-keep-data", "repair-boot"
//! finish = "wait"              # or "reboot", "poweroff"
//! again = false                # true: even on a disk with a TruthDB, each time the medium starts
//! hostname = "node-1"
//! address = "dhcp"             # or "192.0.2.10/24"
//! gateway = "192.0.2.1"
//! dns = "192.0.2.53"
//! partitions = 8
//! time_server = "pool.ntp.org"
//! serial_console = true
//! ```
//!
//! On the command line each key begins with `truthdb.`, as `truthdb.disk=S5GXNF0R900140`. An unknown key is
//! refused: a misspelt `wipe` must not be one that nobody gave. The modes that keep the data take no settings of the
//! node, which keeps its own.

use serde::Deserialize;

use crate::flow::{Answers, Field, Finish};
use crate::plan::Mode;

/// What every key on the command line begins with.
const PREFIX: &str = "truthdb.";
/// Keys on the command line that are not answers.
const NO_ANSWERS: [&str; 2] = ["log", "screen"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    disk: String,
    #[serde(default)]
    wipe: bool,
    #[serde(default)]
    mode: FileMode,
    #[serde(default)]
    finish: FileFinish,
    #[serde(default)]
    again: bool,
    hostname: Option<String>,
    address: Option<String>,
    gateway: Option<String>,
    dns: Option<String>,
    partitions: Option<u32>,
    time_server: Option<String>,
    serial_console: Option<bool>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum FileMode {
    #[default]
    Install,
    ReinstallKeepData,
    RepairBoot,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum FileFinish {
    #[default]
    Wait,
    Reboot,
    PowerOff,
}

/// Reads an answer file.
///
/// # Errors
///
/// Why it is not followed: the line and the reason.
pub fn parse(text: &str) -> Result<Answers, String> {
    let file: AnswerFile = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            let before = text.get(..span.start).unwrap_or_default();
            before.matches('\n').count() + 1
        });
        format!("line {line}: {}", error.message())
    })?;
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let values = [
        (Field::Hostname, file.hostname),
        (Field::Address, file.address),
        (Field::Gateway, file.gateway),
        (Field::Dns, file.dns),
        (
            Field::Partitions,
            file.partitions.map(|count| count.to_string()),
        ),
        (Field::TimeServer, file.time_server),
        (Field::SerialConsole, file.serial_console.map(yes_or_no)),
    ];
    let values: Vec<(Field, String)> = values
        .into_iter()
        .filter_map(|(field, value)| Some((field, value?)))
        .collect();
    let mode = match file.mode {
        FileMode::Install => Mode::Install,
        FileMode::ReinstallKeepData => Mode::ReinstallKeepData,
        FileMode::RepairBoot => Mode::RepairBoot,
    };
    // Nobody should believe that a node has got another address.
    if mode != Mode::Install
        && let Some((field, _)) = values.first()
    {
        return Err(format!(
            "{} is given, and the mode keeps the node as it is set. Leave such keys out",
            key(*field)
        ));
    }
    Ok(Answers {
        disk: file.disk,
        wipe: file.wipe,
        mode,
        values,
        finish: match file.finish {
            FileFinish::Wait => Finish::Wait,
            FileFinish::Reboot => Finish::Reboot,
            FileFinish::PowerOff => Finish::PowerOff,
        },
        again: file.again,
    })
}

/// What a setting is called in the file.
fn key(field: Field) -> &'static str {
    match field {
        Field::Hostname => "hostname",
        Field::Address => "address",
        Field::Gateway => "gateway",
        Field::Dns => "dns",
        Field::Partitions => "partitions",
        Field::TimeServer => "time_server",
        Field::SerialConsole => "serial_console",
    }
}

/// The answers on a command line, as the text of a file; `None` when there are none.
#[must_use]
pub fn from_command_line(line: &str) -> Option<String> {
    let mut text = String::new();
    for word in line.split_ascii_whitespace() {
        let Some((key, value)) = word
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        let is_key = key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if !is_key || key.is_empty() || NO_ANSWERS.contains(&key) {
            continue;
        }
        // Numbers and truth values are what they look like, everything else is a text.
        let is_plain = value.parse::<u32>().is_ok() || matches!(value, "true" | "false");
        let value = if is_plain && key != "disk" && key != "hostname" {
            value.to_owned()
        } else {
            toml::Value::String(value.to_owned()).to_string()
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_file_names_a_disk_and_wipes_nothing() {
        let answers = parse("disk = \"S1\"\n").unwrap();
        assert_eq!(
            (answers.wipe, answers.mode, answers.finish),
            (false, Mode::Install, Finish::Wait)
        );
        assert!(!answers.again);
        assert_eq!(answers.values, []);
    }

    #[test]
    fn every_key_is_taken() {
        let text = "disk = \"S1\"\nwipe = true\nmode = \"install\"\nfinish = \"poweroff\"\nagain = true\n\
                    hostname = \"n\"\naddress = \"dhcp\"\ngateway = \"\"\ndns = \"\"\npartitions = 3\n\
                    time_server = \"t\"\nserial_console = false\n";
        let answers = parse(text).unwrap();
        assert_eq!(answers.values.len(), Field::ALL.len());
        assert!(answers.again);
        assert_eq!(
            (answers.mode, answers.finish),
            (Mode::Install, Finish::PowerOff)
        );
        assert!(
            answers
                .values
                .contains(&(Field::SerialConsole, "no".into()))
        );
    }

    #[test]
    fn settings_are_refused_where_the_node_keeps_its_own() {
        for mode in ["reinstall-keep-data", "repair-boot"] {
            let text = format!("disk = \"S1\"\nmode = {mode:?}\nfinish = \"reboot\"\n");
            assert!(parse(&text).is_ok(), "{mode}");
            for (key, value) in [
                ("hostname", "\"n\""),
                ("address", "\"dhcp\""),
                ("gateway", "\"\""),
                ("dns", "\"\""),
                ("partitions", "3"),
                ("time_server", "\"t\""),
                ("serial_console", "false"),
            ] {
                let error = parse(&format!("{text}{key} = {value}\n")).unwrap_err();
                assert!(error.starts_with(key), "{error}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (text, line) in [
            ("wipe = true\n", "line 1"),
            ("disk = \"S1\"\nwype = true\n", "line 2"),
            ("disk = \"S1\"\n\nwipe = \"yes\"\n", "line 3"),
            ("disk = 7\n", "line 1"),
            ("disk = \"S1\"\nmode = \"format\"\n", "line 2"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(line), "{text:?}: {error}");
        }
    }

    #[test]
    fn answers_are_the_same_if_they_make_the_same_of_a_disk() {
        let id = |text: &str| parse(text).unwrap().id();
        let one = id("disk = \"S1\"\nhostname = \"n\"\npartitions = 3\n");
        let line = "truthdb.partitions=3 truthdb.hostname=n truthdb.disk=S1 truthdb.wipe=true";
        assert_eq!(one, id(&from_command_line(line).unwrap()));
        for other in [
            "disk = \"S2\"\nhostname = \"n\"\npartitions = 3\n",
            "disk = \"S1\"\nhostname = \"n\"\npartitions = 4\n",
        ] {
            assert_ne!(one, id(other));
        }
        let keep = "disk = \"S1\"\nmode = \"repair-boot\"\n";
        assert_ne!(id("disk = \"S1\"\n"), id(keep));
        let more = "# by hand\npartitions = 3\nhostname = \"n\"\ndisk = \"S1\"\nwipe = true\nagain = true\n\
                    finish = \"reboot\"\n";
        assert_eq!(one, id(more));
    }

    #[test]
    fn the_command_line_says_the_same() {
        let line = "quiet truthdb.disk=0123 truthdb.wipe=true truthdb.partitions=4 truthdb.log=debug \
                    truthdb.finish=reboot root=/dev/x truthdb";
        let answers = parse(&from_command_line(line).unwrap()).unwrap();
        assert_eq!((&answers.disk[..], answers.wipe), ("0123", true));
        assert_eq!(answers.finish, Finish::Reboot);
        assert_eq!(answers.values, [(Field::Partitions, "4".to_owned())]);
        let none = from_command_line("quiet truthdb.log=debug truthdb.screen=framebuffer");
        assert_eq!(none, None);
        assert!(parse(&from_command_line("truthdb.disk=1 truthdb.wype=true").unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in ".*") {
            let _ = parse(&text);
            if let Some(file) = from_command_line(&text) {
                let _ = parse(&file);
            }
        }
    }
}
