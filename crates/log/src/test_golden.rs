//! Golden files: `TRUTHDB_BLESS=1` writes them anew.

use std::fmt::Write as _;

/// Compares with `tests/golden/<name>`.
pub(crate) fn check(name: &str, found: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{path} differs (TRUTHDB_BLESS=1 accepts the change):\n{found}"
    );
}

/// The file as text: every page with its non-zero 16-byte rows.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, row) in bytes.chunks(16).enumerate() {
        if row.iter().any(|byte| *byte != 0) {
            write!(text, "{:06x} ", i * 16).unwrap();
            row.iter()
                .for_each(|byte| write!(text, " {byte:02x}").unwrap());
            text.push('\n');
        }
    }
    writeln!(text, "{:06x}  end", bytes.len()).unwrap();
    text
}
