//! Kernel configuration: what the fragments demand, and whether a resolved configuration keeps to it.
//!
//! A fragment's line is a demand. `make olddefconfig` drops a symbol silently when something that it depends on is
//! missing, and turns others on by default, so every demand is looked up in the result.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// Symbols and the values they must have; `None` stands for off.
pub(crate) type Demands = BTreeMap<String, Option<String>>;

/// Reads fragments in order.
///
/// # Errors
///
/// A line that is no demand, or a symbol that is demanded twice.
pub(crate) fn demands(fragments: &[(&str, &str)]) -> Result<Demands> {
    let mut demands = Demands::new();
    for (file, text) in fragments {
        for (at, line) in (1..).zip(text.lines()) {
            let demand = demand(line).with_context(|| format!("{file}:{at}: {line:?}"))?;
            if let Some((symbol, value)) = demand {
                ensure!(
                    demands.insert(symbol.to_owned(), value).is_none(),
                    "{file}:{at}: {symbol} is demanded twice"
                );
            }
        }
    }
    Ok(demands)
}

fn demand(line: &str) -> Result<Option<(&str, Option<String>)>> {
    if let Some(rest) = line.strip_prefix("# CONFIG_")
        && let Some(symbol) = rest.strip_suffix(" is not set")
    {
        return Ok(Some((symbol, None)));
    }
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (symbol, value) = line
        .strip_prefix("CONFIG_")
        .and_then(|rest| rest.split_once('='))
        .context("it is neither `CONFIG_…=…`, nor `# CONFIG_… is not set`, nor a comment")?;
    ensure!(value != "n", "write `# CONFIG_{symbol} is not set`");
    ensure!(value != "m", "there are no modules");
    Ok(Some((symbol, Some(value.to_owned()))))
}

/// The values of a resolved configuration; what is off is not in it.
pub(crate) fn resolved(config: &str) -> BTreeMap<&str, &str> {
    config
        .lines()
        .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
        .collect()
}

/// Demands that a resolved configuration does not keep, for people.
///
/// # Errors
///
/// All that are not kept, with what to do.
pub(crate) fn gate(demands: &Demands, config: &str) -> Result<()> {
    let resolved = resolved(config);
    let mut broken = Vec::new();
    for (symbol, wanted) in demands {
        let found = resolved.get(symbol.as_str()).copied();
        match (wanted.as_deref(), found) {
            (wanted, found) if wanted == found => {}
            (Some(wanted), None) => broken.push(format!(
                "CONFIG_{symbol}={wanted} was dropped: something that it depends on is off, or \
                 this version of the kernel has no such symbol"
            )),
            (Some(wanted), Some(found)) => {
                broken.push(format!("CONFIG_{symbol} is {found}, wanted {wanted}"));
            }
            (None, found) => broken.push(format!(
                "CONFIG_{symbol} is {} although it is forbidden: something selects it",
                found.unwrap_or_default()
            )),
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel's configuration is not what the fragments demand:\n  {}\n\
         look the symbols up in the kernel's Kconfig files (`depends on`, `select`), and add to the \
         fragments what is missing, or change the demand",
        broken.join("\n  ")
    )
}

/// The list of hardening rules with their reasons, and the exceptions with theirs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hardening {
    y: BTreeMap<String, String>,
    n: BTreeMap<String, String>,
    exception: Vec<Exception>,
}

/// A rule that a kernel does not keep.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    symbol: String,
    kernels: Vec<String>,
    reason: String,
}

impl Hardening {
    /// Reads the list.
    ///
    /// # Errors
    ///
    /// What is wrong in it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let list: Self = toml::from_str(text).context("in kernel-base/hardening.toml")?;
        for exception in &list.exception {
            let symbol = &exception.symbol;
            ensure!(
                list.y.contains_key(symbol) || list.n.contains_key(symbol),
                "there is no rule {symbol}, of which an exception could be made"
            );
            ensure!(
                exception.reason.len() > 20,
                "the exception of {symbol} needs a reason"
            );
        }
        Ok(list)
    }

    /// Whether a kernel's resolved configuration keeps all rules but the excepted ones; the number of rules kept.
    ///
    /// # Errors
    ///
    /// Rules that are not kept, and exceptions that are no longer needed.
    pub(crate) fn check(&self, kernel: &str, config: &str) -> Result<usize> {
        let resolved = resolved(config);
        let is_on = |symbol: &str| resolved.get(symbol) == Some(&"y");
        let on = self.y.iter().map(|(symbol, why)| (symbol, true, why));
        let off = self.n.iter().map(|(symbol, why)| (symbol, false, why));
        let mut wrong = Vec::new();
        let mut kept = 0;
        for (symbol, wanted, why) in on.chain(off) {
            let excepted = self.exception.iter().any(|exception| {
                exception.symbol == *symbol && exception.kernels.iter().any(|name| name == kernel)
            });
            match (is_on(symbol) == wanted, excepted) {
                (true, false) => kept += 1,
                (false, true) => {}
                (false, false) => wrong.push(format!(
                    "CONFIG_{symbol} must be {} ({why})",
                    if wanted { "y" } else { "off" }
                )),
                (true, true) => wrong.push(format!(
                    "the exception of CONFIG_{symbol} is no longer needed: remove it"
                )),
            }
        }
        ensure!(
            wrong.is_empty(),
            "the {kernel} kernel does not keep kernel-base/hardening.toml:\n  {}",
            wrong.join("\n  ")
        );
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str =
        "# Disks.\nCONFIG_NVME=y\nCONFIG_NR_CPUS=512\n\n# CONFIG_VT is not set\n";

    fn of(fragment: &str) -> Demands {
        demands(&[("base.config", fragment)]).unwrap()
    }

    #[test]
    fn a_configuration_that_keeps_every_demand_passes() {
        gate(&of(FRAGMENT), "CONFIG_NVME=y\nCONFIG_NR_CPUS=512\n").unwrap();
        gate(
            &of(FRAGMENT),
            "CONFIG_NVME=y\nCONFIG_NR_CPUS=512\n# CONFIG_VT is not set\nCONFIG_PCI=y\n",
        )
        .unwrap();
    }

    #[test]
    fn a_lost_a_changed_and_a_forbidden_symbol_are_each_named() {
        let config = "CONFIG_NR_CPUS=64\nCONFIG_VT=y\n";
        let error = gate(&of(FRAGMENT), config).unwrap_err().to_string();
        assert!(error.contains("CONFIG_NVME=y was dropped"), "{error}");
        assert!(
            error.contains("CONFIG_NR_CPUS is 64, wanted 512"),
            "{error}"
        );
        assert!(
            error.contains("CONFIG_VT is y although it is forbidden"),
            "{error}"
        );
    }

    #[test]
    fn a_fragment_is_read_strictly() {
        for line in ["CONFIG_X=n", "CONFIG_X=m", "X=y", "CONFIG_X"] {
            assert!(demands(&[("f", line)]).is_err(), "{line}");
        }
        let twice = demands(&[("a", "CONFIG_X=y"), ("b", "# CONFIG_X is not set")]);
        assert!(
            twice
                .unwrap_err()
                .to_string()
                .contains("b:1: X is demanded twice")
        );
    }

    #[test]
    fn hardening_wants_each_rule_kept_or_excepted_with_need() {
        let list = Hardening::parse(
            "[y]\nA = 'a'\nB = 'b'\n[n]\nC = 'c'\n[[exception]]\nsymbol = 'B'\n\
             kernels = ['runtime']\nreason = 'it would cost more than it gains'\n",
        )
        .unwrap();
        assert_eq!(list.check("runtime", "CONFIG_A=y\n").unwrap(), 2);
        let missing = list.check("installer", "CONFIG_A=y\n").unwrap_err();
        assert!(missing.to_string().contains("CONFIG_B must be y (b)"));
        let useless = list
            .check("runtime", "CONFIG_A=y\nCONFIG_B=y\n")
            .unwrap_err();
        assert!(useless.to_string().contains("no longer needed"));
        assert!(list.check("runtime", "CONFIG_A=y\nCONFIG_C=y\n").is_err());
    }

    #[test]
    fn the_fragments_of_the_repository_are_valid() {
        let base = include_str!("../../kernel-base/base.config");
        for own in [
            include_str!("../../runtime-kernel/kernel.config"),
            include_str!("../../installer-kernel/kernel.config"),
        ] {
            assert!(demands(&[("base", base), ("own", own)]).unwrap().len() > 150);
        }
        Hardening::parse(include_str!("../../kernel-base/hardening.toml")).unwrap();
    }
}
