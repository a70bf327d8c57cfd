//! The limits of rows and tables. They are part of the formats: a decoder refuses what exceeds them.

/// Longest key of a row in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value of a row in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most tables of one module.
pub const TABLES_MAX: u32 = 256;
/// Longest name of a module or of a table in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// A length in memory that the limits above keep below 4 GiB.
pub(crate) fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the limits of rows keep this below 4 GiB")
}

/// A length in memory as a number on disk.
pub(crate) fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("lengths in memory fit 64 bits")
}

/// A number from disk as a length in memory; one that does not fit becomes a length that no buffer
/// has.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Whether a name is one that modules and tables may have: 1 to [`NAME_BYTES_MAX`] bytes of
/// `a-z`, `0-9`, `-` and, inside of a table's name, `_`.
pub fn is_name(name: &str) -> bool {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good)
}
