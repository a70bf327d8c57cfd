//! What came out of a run, as one table, and whether an image has outgrown what was set for it.

/// What images may have at most, in bytes; more is said, and stops nothing.
const TARGETS: [(&str, u64); 3] = [
    (crate::images::ISO, 40_000_000),
    ("TruthDBRuntime.efi", 25_000_000),
    ("TruthDBInstaller.efi", 31 << 20),
];

/// A file that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Artefact {
    /// Its name.
    pub(crate) name: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// Its hash.
    pub(crate) sha256: String,
}

/// Name, length and hash of each, and a warning for each that is too large.
pub(crate) fn table(artefacts: &[Artefact]) -> String {
    let width = artefacts.iter().map(|made| made.name.len()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for Artefact {
        name,
        bytes,
        sha256,
    } in artefacts
    {
        text.push_str(&format!(
            "      {name:<width$} {bytes:>13} bytes  {sha256}\n"
        ));
    }
    for Artefact { name, bytes, .. } in artefacts {
        let target = TARGETS.iter().find(|(image, _)| image == name);
        if let Some((_, most)) = target.filter(|(_, most)| bytes > most) {
            text.push_str(&format!(
                "warning: {name} has {bytes} bytes, {} more than the {most} that were set for it \
                 (docs/building.md, \"Sizes and times\")\n",
                bytes - most
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_listed_and_only_what_is_too_large_is_warned_of() {
        let artefact = |name: &str, bytes| Artefact {
            name: name.into(),
            bytes,
            sha256: "ab".repeat(32),
        };
        let small = [
            artefact("TruthDBRuntime.efi", 25_000_000),
            artefact("truthdb.raw", 8 << 30),
        ];
        let text = table(&small);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("8589934592 bytes  abab"), "{text}");
        for (name, most) in TARGETS {
            assert!(!table(&[artefact(name, most)]).contains("warning"));
            let text = table(&[artefact(name, most + 1)]);
            let line = text.lines().last().unwrap();
            assert!(line.starts_with(&format!("warning: {name}")), "{text}");
        }
    }
}
