//! The plan as it is read before it is confirmed: in lines that fit every screen.

use super::{Network, Settings};
use crate::plan::{Mode, Plan};

/// Columns of a line: a serial line has as many, and the smallest screen some more.
const COLUMNS: usize = 78;
/// How far the rest of a line stands in.
const INDENT: usize = 6;

/// What a new node is set to, if the plan makes one, and the plan's text. Long lines are broken, and hashes
/// stay whole.
#[must_use]
pub fn plan_lines(plan: &Plan, settings: Option<&Settings>) -> Vec<String> {
    let settings = settings.filter(|_| plan.mode == Mode::Install);
    let mut lines = settings.map(settings_lines).unwrap_or_default();
    lines.extend(plan.text().lines().map(str::to_owned));
    lines.iter().flat_map(|line| broken(line)).collect()
}

fn settings_lines(settings: &Settings) -> Vec<String> {
    let or_none = |text: &str| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text.to_owned()
        }
    };
    let network = match &settings.network {
        Network::Dhcp => "by DHCP".to_owned(),
        Network::Static {
            address,
            gateway,
            dns,
        } => format!(
            "{address}, router {}, name server {}",
            or_none(gateway),
            or_none(dns)
        ),
    };
    let console = if settings.serial_console { "yes" } else { "no" };
    vec![
        format!(
            "node: {}, {} database partitions",
            settings.hostname, settings.partitions
        ),
        format!("  address: {network}"),
        format!(
            "  time server: {}, serial console: {console}",
            or_none(&settings.time_server)
        ),
    ]
}

fn broken(line: &str) -> Vec<String> {
    let begin = line.chars().take_while(|c| *c == ' ').count();
    let mut out = Vec::new();
    let mut now = " ".repeat(begin);
    let mut is_empty = true;
    for word in line.trim_start().split(' ') {
        let wanted = now.chars().count() + 1 + word.chars().count();
        if !is_empty && wanted > COLUMNS {
            out.push(std::mem::replace(&mut now, " ".repeat(INDENT)));
            is_empty = true;
        }
        if !is_empty {
            now.push(' ');
        }
        now.push_str(word);
        is_empty = false;
    }
    out.push(now);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words_and_hashes_stay_whole() {
        let hash = "0123456789abcdef".repeat(4);
        let line = format!("  file: EFI/BOOT/BOOTX64.EFI 31457280 bytes sha256 {hash}");
        assert_eq!(
            broken(&line),
            [
                "  file: EFI/BOOT/BOOTX64.EFI 31457280 bytes sha256".to_owned(),
                format!("      {hash}")
            ]
        );
        assert_eq!(broken("plan: a short one"), ["plan: a short one"]);
        assert_eq!(broken(""), [""]);
        let endless = "x".repeat(200);
        assert_eq!(broken(&endless).concat(), endless);
    }
}
