//! Unified kernel images: an EFI stub with operating system, command line, initramfs and kernel as sections behind
//! its own.
//!
//! A section that the firmware's loader cannot map as it stands hangs some Secure Boot firmware, so each begins at
//! a page, its file content at the stub's file alignment, and `SizeOfImage` covers all. Nothing is moved: the stub's
//! header must have room for the new section headers. No signatures, no time stamps.

use anyhow::{Context as _, Result, bail, ensure};

/// Where a section may begin in memory.
const PAGE_BYTES: u32 = 4096;
/// Bytes of a section header.
const HEADER_BYTES: usize = 40;
/// Offset of the PE header's offset in the DOS header.
const PE_OFFSET_AT: usize = 0x3c;
/// The machine that we build for, in the COFF header.
const MACHINE_X86_64: u16 = 0x8664;
/// Magic of the optional header of a 64-bit image.
const PE32_PLUS: u16 = 0x20b;
/// Initialised data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// A section to be added: its name (at most 8 bytes) and content.
pub(crate) type Section<'a> = (&'a str, &'a [u8]);

/// Appends sections to a stub.
///
/// # Errors
///
/// A stub that is no 64-bit x86 PE image, has no room for the headers, or has a section of that name.
pub(crate) fn append(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>> {
    let layout = Layout::read(stub).context("the EFI stub is not usable")?;
    let mut image = stub.to_vec();
    let room = layout.headers_bytes.saturating_sub(layout.table_end(0)) / HEADER_BYTES;
    ensure!(
        sections.len() <= room,
        "the EFI stub has room for {room} more sections, {} are wanted",
        sections.len()
    );
    let existing = layout.sections(stub)?;
    let mut address = existing
        .iter()
        .map(|section| section.address + section.memory_bytes)
        .max()
        .unwrap_or(0);
    for (at, (name, content)) in sections.iter().enumerate() {
        ensure!(
            existing
                .iter()
                .all(|section| section.name != name.as_bytes()),
            "the EFI stub has a section {name} already"
        );
        ensure!(!content.is_empty(), "section {name} is empty");
        address = align(address, PAGE_BYTES.max(layout.section_align))?;
        let memory_bytes = u32::try_from(content.len())
            .with_context(|| format!("section {name} is too large: {} bytes", content.len()))?;
        image.resize(image.len().next_multiple_of(layout.file_align), 0);
        let file_at = u32::try_from(image.len()).context("the image exceeds 4 GiB")?;
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(layout.file_align), 0);
        let file_bytes = u32::try_from(image.len())? - file_at;
        let header = header(name, [memory_bytes, address, file_bytes, file_at])?;
        let header_at = layout.table_end(at);
        image[header_at..header_at + HEADER_BYTES].copy_from_slice(&header);
        address = address
            .checked_add(memory_bytes)
            .context("the image exceeds 4 GiB of memory")?;
    }
    let count = u16::try_from(layout.section_count + sections.len())?;
    put(&mut image, layout.coff + 2, &count.to_le_bytes());
    // No time, so that the same inputs give the same bytes; no checksum, which EFI does not look at.
    put(&mut image, layout.coff + 4, &[0; 4]);
    let image_bytes = align(address, PAGE_BYTES.max(layout.section_align))?;
    put(&mut image, layout.optional + 56, &image_bytes.to_le_bytes());
    put(&mut image, layout.optional + 64, &[0; 4]);
    Ok(image)
}

/// Looks at a finished image as firmware and stub will: the wanted sections are there, have content, and begin at
/// pages; every section lies within `SizeOfImage` and within the file, and none on another. Not all of the stub's own
/// begin at pages.
///
/// # Errors
///
/// The first thing that is wrong.
pub(crate) fn check(image: &[u8], wanted: &[&str]) -> Result<()> {
    let layout = Layout::read(image)?;
    let sections = layout.sections(image)?;
    for name in wanted {
        let found = sections
            .iter()
            .find(|section| section.name == name.as_bytes());
        let found = found.with_context(|| format!("section {name} is missing"))?;
        ensure!(found.memory_bytes > 0, "section {name} is empty");
        ensure!(
            found.address.is_multiple_of(PAGE_BYTES),
            "section {name} begins at {:#x}, within a page",
            found.address
        );
    }
    let image_bytes = u64::from(u32_at(image, layout.optional + 56)?);
    ensure!(
        image_bytes.is_multiple_of(u64::from(layout.section_align)),
        "SizeOfImage, {image_bytes}, is no multiple of the sections' alignment"
    );
    let headers = (
        "the headers".to_owned(),
        0,
        u64::try_from(layout.headers_bytes)?,
    );
    let mut in_memory = vec![headers.clone()];
    let mut in_file = vec![headers];
    for section in &sections {
        let name = format!("section {}", String::from_utf8_lossy(&section.name));
        let [address, bytes] = [section.address, section.memory_bytes].map(u64::from);
        in_memory.push((name.clone(), address, address + bytes));
        let [at, bytes] = [section.file_at, section.file_bytes].map(u64::from);
        // A section without content in the file, as `.bss`.
        if bytes > 0 {
            in_file.push((name, at, at + bytes));
        }
    }
    apart(in_memory, image_bytes, "SizeOfImage")?;
    apart(in_file, u64::try_from(image.len())?, "the file")
}

/// Whether ranges lie below `end`, and none on another.
fn apart(mut ranges: Vec<(String, u64, u64)>, end: u64, what: &str) -> Result<()> {
    ranges.sort_by_key(|(_, first, last)| (*first, *last));
    for (name, _, last) in &ranges {
        ensure!(
            *last <= end,
            "{name} ends at {last:#x}, beyond {what}, {end:#x}"
        );
    }
    for pair in ranges.windows(2) {
        if let [(below, _, last), (above, first, _)] = pair {
            ensure!(
                last <= first,
                "{above} begins at {first:#x}, within {below}"
            );
        }
    }
    Ok(())
}

/// The content of a section of an image; `None` if it has none of that name.
///
/// # Errors
///
/// An image that is no 64-bit x86 PE image, or is cut short.
pub(crate) fn section<'a>(image: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    let layout = Layout::read(image)?;
    let sections = layout.sections(image)?;
    let Some(found) = sections.iter().find(|found| found.name == name.as_bytes()) else {
        return Ok(None);
    };
    let start = usize::try_from(found.file_at)?;
    let bytes = usize::try_from(found.memory_bytes.min(found.file_bytes))?;
    let content = image.get(start..start + bytes);
    Ok(Some(
        content.with_context(|| format!("section {name} is cut short"))?,
    ))
}

fn header(name: &str, numbers: [u32; 4]) -> Result<[u8; HEADER_BYTES]> {
    let mut header = [0; HEADER_BYTES];
    ensure!(name.len() <= 8, "{name} is too long for a section's name");
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, number) in (8..).step_by(4).zip(numbers) {
        header[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    header[36..].copy_from_slice(&CHARACTERISTICS.to_le_bytes());
    Ok(header)
}

/// What the headers say.
struct Layout {
    coff: usize,
    optional: usize,
    table: usize,
    section_count: usize,
    section_align: u32,
    file_align: usize,
    headers_bytes: usize,
}

/// A section that is there.
struct Present {
    name: Vec<u8>,
    memory_bytes: u32,
    address: u32,
    file_bytes: u32,
    file_at: u32,
}

impl Layout {
    fn read(image: &[u8]) -> Result<Self> {
        let pe = usize::try_from(u32_at(image, PE_OFFSET_AT)?)?;
        ensure!(
            image.starts_with(b"MZ") && image.get(pe..pe + 4) == Some(b"PE\0\0"),
            "it is no PE image"
        );
        let coff = pe + 4;
        let optional = coff + 20;
        if u16_at(image, coff)? != MACHINE_X86_64 || u16_at(image, optional)? != PE32_PLUS {
            bail!("it is no PE image for 64-bit x86");
        }
        let file_align = usize::try_from(u32_at(image, optional + 36)?)?;
        let section_align = u32_at(image, optional + 32)?;
        ensure!(
            file_align.is_power_of_two() && section_align.is_power_of_two(),
            "its alignments are no powers of two"
        );
        let headers_bytes = usize::try_from(u32_at(image, optional + 60)?)?;
        ensure!(headers_bytes <= image.len(), "its header is cut short");
        Ok(Self {
            coff,
            optional,
            table: optional + usize::from(u16_at(image, coff + 16)?),
            section_count: usize::from(u16_at(image, coff + 2)?),
            section_align,
            file_align,
            headers_bytes,
        })
    }

    /// Where the header of the section lies that is `further` behind the last one.
    fn table_end(&self, further: usize) -> usize {
        self.table + (self.section_count + further) * HEADER_BYTES
    }

    fn sections(&self, image: &[u8]) -> Result<Vec<Present>> {
        let at = |index| self.table + index * HEADER_BYTES;
        (0..self.section_count)
            .map(|index| {
                let name = image.get(at(index)..at(index) + 8);
                let name = name.context("the section table is cut short")?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                Ok(Present {
                    name: name.to_vec(),
                    memory_bytes: u32_at(image, at(index) + 8)?,
                    address: u32_at(image, at(index) + 12)?,
                    file_bytes: u32_at(image, at(index) + 16)?,
                    file_at: u32_at(image, at(index) + 20)?,
                })
            })
            .collect()
    }
}

fn align(value: u32, to: u32) -> Result<u32> {
    value
        .checked_next_multiple_of(to)
        .context("the image exceeds 4 GiB of memory")
}

fn u16_at(image: &[u8], at: usize) -> Result<u16> {
    let bytes = image.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u16::from_le_bytes(
        *bytes.context("its header is cut short")?,
    ))
}

fn u32_at(image: &[u8], at: usize) -> Result<u32> {
    let bytes = image.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u32::from_le_bytes(
        *bytes.context("its header is cut short")?,
    ))
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::process::tests::has;

    /// The smallest image with one section that the reader takes, with room for `room` more.
    pub(crate) fn stub(room: usize) -> Vec<u8> {
        let headers = 0xc8 + (1 + room) * HEADER_BYTES;
        let text_at = headers.next_multiple_of(0x200);
        let mut image = vec![0; text_at + 0x200];
        put(&mut image, 0, b"MZ");
        put(&mut image, PE_OFFSET_AT, &0x40u32.to_le_bytes());
        put(&mut image, 0x40, b"PE\0\0");
        put(&mut image, 0x44, &MACHINE_X86_64.to_le_bytes());
        put(&mut image, 0x46, &1u16.to_le_bytes());
        put(&mut image, 0x48, &77u32.to_le_bytes());
        put(&mut image, 0x54, &0x70u16.to_le_bytes());
        put(&mut image, 0x58, &PE32_PLUS.to_le_bytes());
        put(&mut image, 0x58 + 32, &0x200u32.to_le_bytes());
        put(&mut image, 0x58 + 36, &0x200u32.to_le_bytes());
        let [headers, text_at] = [headers, text_at].map(|at| u32::try_from(at).unwrap());
        put(&mut image, 0x58 + 60, &headers.to_le_bytes());
        let text = header(".text", [0x123, 0x1000, 0x200, text_at]).unwrap();
        put(&mut image, 0xc8, &text);
        image
    }

    #[test]
    fn sections_are_read_back_and_lie_on_pages() {
        let kernel = vec![7; 5000];
        let image = append(
            &stub(2),
            &[(".osrel", b"ID=truthdb\n"), (".linux", &kernel)],
        )
        .unwrap();
        assert_eq!(section(&image, ".osrel").unwrap().unwrap(), b"ID=truthdb\n");
        assert_eq!(section(&image, ".linux").unwrap().unwrap(), kernel);
        assert_eq!(section(&image, ".initrd").unwrap(), None);
        let layout = Layout::read(&image).unwrap();
        let sections = layout.sections(&image).unwrap();
        for added in &sections[1..] {
            assert_eq!(added.address % PAGE_BYTES, 0);
            assert_eq!(added.file_at % 0x200, 0);
            assert_eq!(added.file_bytes % 0x200, 0);
        }
        // .text ends at 0x1123, so: .osrel in one page from 0x2000, .linux in two from 0x3000.
        assert_eq!(u32_at(&image, layout.optional + 56).unwrap(), 0x5000);
        assert_eq!(u32_at(&image, layout.coff + 4).unwrap(), 0, "no time stamp");
    }

    #[test]
    fn what_firmware_would_stumble_over_is_found() {
        let wanted = [".osrel", ".linux"];
        let image = append(&stub(2), &[(".osrel", b"ID=x\n"), (".linux", &[7; 5000])]).unwrap();
        check(&image, &wanted).unwrap();
        let error = |image: &[u8], wanted: &[&str]| check(image, wanted).unwrap_err().to_string();
        assert!(error(&image, &[".initrd"]).contains(".initrd is missing"));
        // Headers of sections: .text at 0xc8, then .osrel and .linux. In each, from byte 8 on: size, address, and both
        // again in the file.
        let [osrel, linux] = [0xc8 + HEADER_BYTES, 0xc8 + 2 * HEADER_BYTES];
        let with = |at: usize, value: u32| {
            let mut changed = image.clone();
            put(&mut changed, at, &value.to_le_bytes());
            changed
        };
        for (changed, says) in [
            (with(linux + 8, 0), "section .linux is empty"),
            (with(linux + 12, 0x3200), "within a page"),
            (
                with(linux + 12, 0x2000),
                "begins at 0x2000, within section .osrel",
            ),
            (with(linux + 12, 0x4000), "beyond SizeOfImage"),
            (
                with(osrel + 16, 0x400),
                "begins at 0x600, within section .osrel",
            ),
            (with(linux + 20, 0x2000), "beyond the file"),
            (with(osrel + 20, 0), "within the headers"),
            (with(0x58 + 56, 0x5001), "no multiple"),
            (with(0x58 + 56, 0x4000), "beyond SizeOfImage"),
        ] {
            let said = error(&changed, &wanted);
            assert!(said.contains(says), "{says}: {said}");
        }
        for end in 0..image.len() {
            // Cut anywhere: an error, never a panic.
            assert!(check(&image[..end], &wanted).is_err());
        }
    }

    /// Where Debian's package is installed: the file that images begin with has its own peculiarities.
    #[test]
    fn an_image_on_the_real_stub_is_as_firmware_wants_it() {
        let stub = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub");
        if !has("the boot stub", stub.is_ok(), "systemd-boot-efi") {
            return;
        }
        let stub = stub.unwrap();
        let image = append(&stub, &[(".initrd", &[1; 9000]), (".linux", &[2; 70_000])]).unwrap();
        check(&image, &[".text", ".sbat", ".initrd", ".linux"]).unwrap();
    }

    #[test]
    fn a_stub_without_room_is_refused() {
        let error = append(&stub(0), &[(".linux", b"x")]).unwrap_err();
        assert!(error.to_string().contains("room for 0 more"), "{error}");
    }

    #[test]
    fn a_section_that_is_there_already_or_empty_is_refused() {
        assert!(append(&stub(1), &[(".text", b"x")]).is_err());
        assert!(append(&stub(1), &[(".linux", b"")]).is_err());
    }

    #[test]
    fn what_is_no_image_is_refused_without_panic() {
        let stub = stub(1);
        for end in 0..stub.len() {
            // Cut anywhere: an error or an image, never a panic.
            let _ = append(&stub[..end], &[(".linux", b"x")]);
            let _ = section(&stub[..end], ".text");
        }
        assert!(append(b"#!/bin/sh", &[(".linux", b"x")]).is_err());
    }
}
