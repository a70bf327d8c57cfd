//! What a kernel image says of itself, in the header that boot loaders read ("The Linux/x86 Boot Protocol").

use anyhow::{Context as _, Result, ensure};

/// Where the header's magic stands.
const MAGIC_AT: usize = 0x202;
/// The magic.
const MAGIC: &[u8] = b"HdrS";
/// Where the header says where the version is.
const VERSION_POINTER_AT: usize = 0x20e;
/// From where that counts: the boot sector comes first.
const VERSION_BASE: usize = 0x200;
/// The longest version that is looked for.
const VERSION_BYTES_MAX: usize = 256;

/// The release of a kernel, as `uname -r` says it.
///
/// # Errors
///
/// It is no bzImage, or does not say its version.
pub(crate) fn release(image: &[u8]) -> Result<String> {
    ensure!(
        image.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC),
        "it is no kernel that a boot loader takes (no bzImage: `HdrS` is not at 0x202)"
    );
    let pointer = image
        .get(VERSION_POINTER_AT..)
        .and_then(<[u8]>::first_chunk);
    let pointer = usize::from(u16::from_le_bytes(*pointer.context("it is cut short")?));
    ensure!(pointer != 0, "it does not say its version");
    let text = image.get(VERSION_BASE + pointer..);
    let text = text.context("it is cut short")?;
    let text = &text[..text.len().min(VERSION_BYTES_MAX)];
    // The release is the first word; builder, host and date follow.
    let word = text.split(|byte| matches!(byte, 0 | b' ')).next();
    let word = word.unwrap_or_default();
    ensure!(
        !word.is_empty() && word.len() < text.len() && word.iter().all(u8::is_ascii_graphic),
        "what it says of its version is none"
    );
    Ok(String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest image that says a version.
    pub(crate) fn image(version: &str) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        image[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&0x40u16.to_le_bytes());
        image[0x240..0x240 + version.len()].copy_from_slice(version.as_bytes());
        image
    }

    #[test]
    fn the_release_is_the_first_word_of_the_version() {
        let image = image("6.12.117-truthdb (truthdb@truthdb) #1 SMP");
        assert_eq!(release(&image).unwrap(), "6.12.117-truthdb");
    }

    #[test]
    fn what_is_no_kernel_or_says_no_version_is_refused_without_panic() {
        let error = release(b"\x7fELF").unwrap_err().to_string();
        assert!(error.contains("no bzImage"), "{error}");
        assert!(release(&image("")).is_err());
        assert!(release(&image("6.12\u{1}")).is_err());
        let mut without = image("6.12");
        without[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&[0; 2]);
        assert!(release(&without).is_err());
        let mut outside = image("6.12");
        outside[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&[0xff; 2]);
        assert!(release(&outside).is_err());
        let whole = image("6.12.1-x #1");
        for end in 0..whole.len() {
            // Cut anywhere: an error or a release, never a panic.
            let _ = release(&whole[..end]);
        }
    }
}
