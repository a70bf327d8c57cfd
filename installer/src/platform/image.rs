//! Images that firmware starts: whether one carries a signature.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Bytes from the beginning of an image that hold all of its headers.
const HEADERS_BYTES: u64 = 64 << 10;
/// Offset of the PE header's offset in the DOS header.
const PE_OFFSET_AT: usize = 0x3c;
/// Magic of the optional header of a 64-bit image.
const PE32_PLUS: [u8; 2] = [0x0b, 0x02];
/// Offset of the optional header, from the PE header.
const OPTIONAL_AT: usize = 24;
/// Offset of the number of data directories in the optional header; the directories follow.
const DIRECTORIES_AT: usize = 108;
/// Number of the directory that names the table of signatures.
const CERTIFICATE_TABLE: usize = 4;
/// Bytes of a directory: offset and size.
const DIRECTORY_BYTES: usize = 8;

/// Whether a file is an image with a signature. Whose it is, and whether a firmware trusts it, is not looked at.
#[must_use]
pub fn is_signed_file(path: &Path) -> bool {
    let mut headers = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADERS_BYTES).read_to_end(&mut headers));
    read.is_ok() && is_signed(&headers)
}

/// The same of an image, or of its beginning, in memory. What is no image has no signature.
#[must_use]
pub fn is_signed(image: &[u8]) -> bool {
    signature_bytes(image).is_some_and(|bytes| bytes > 0)
}

fn signature_bytes(image: &[u8]) -> Option<u32> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?));
    let pe = usize::try_from(u32_at(PE_OFFSET_AT)?).ok()?;
    let optional = pe.checked_add(OPTIONAL_AT)?;
    let is_image = image.starts_with(b"MZ")
        && image.get(pe..)?.starts_with(b"PE\0\0")
        && image.get(optional..)?.starts_with(&PE32_PLUS);
    let directories = usize::try_from(u32_at(optional.checked_add(DIRECTORIES_AT)?)?).ok()?;
    let table = optional + DIRECTORIES_AT + 4 + CERTIFICATE_TABLE * DIRECTORY_BYTES;
    let has_table = is_image && directories > CERTIFICATE_TABLE;
    // The first half of the directory is where the table lies.
    has_table.then(|| u32_at(table.checked_add(4)?))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The headers of an image with a table of signatures of so many bytes.
    fn headers(signature_bytes: u32) -> Vec<u8> {
        let mut image = vec![0; 0x200];
        image[..2].copy_from_slice(b"MZ");
        image[PE_OFFSET_AT] = 0x40;
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x58..0x5a].copy_from_slice(&PE32_PLUS);
        image[0x58 + DIRECTORIES_AT] = 16;
        image[0x58 + 148..][..4].copy_from_slice(&signature_bytes.to_le_bytes());
        image
    }

    #[test]
    fn an_image_with_a_table_of_signatures_is_signed() {
        assert!(is_signed(&headers(1480)));
        assert!(!is_signed(&headers(0)));
        let mut without_directories = headers(1480);
        without_directories[0x58 + DIRECTORIES_AT] = 4;
        assert!(!is_signed(&without_directories));
    }

    #[test]
    fn what_is_no_image_is_not_signed() {
        let image = headers(1480);
        for end in 0..0x58 + 152 {
            assert!(!is_signed(&image[..end]), "{end}");
        }
        let mut far = image;
        far[PE_OFFSET_AT..PE_OFFSET_AT + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(!is_signed(&far) && !is_signed(b"#!/bin/sh\n"));
        assert!(!is_signed_file(Path::new("/no/such/file")));
    }
}
