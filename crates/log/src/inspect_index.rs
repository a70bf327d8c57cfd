//! Explaining the derived files: segment indexes and runs of stream heads.

use truthdb_io::BLOCK_BYTES;

use crate::inspect::{InspectOptions, Reader};
use crate::inspect_layout::{INDEX_HEADER, Node, RECENT_IDS_HEADER, RUN_HEADER, structure};
use crate::layout::{to_u64, to_usize, u32_at, u64_at};
use crate::paged::{PAGE_BYTES, PAYLOAD_BYTES, SECTION_ENTRY_BYTES, Section};

/// Explains a segment index. The part of the header that names the file seeds the checksums of its pages.
pub(crate) fn index(reader: &mut Reader, first: &[u8], options: InspectOptions) -> Vec<Node> {
    let names = crate::index::SECTION_NAMES;
    let mut header = structure(
        "index header",
        0,
        first,
        BLOCK_BYTES,
        INDEX_HEADER,
        names.len() * SECTION_ENTRY_BYTES,
    );
    let mut parts = Vec::new();
    if first.len() == BLOCK_BYTES {
        let seed = xxhash_rust::xxh64::xxh64(&first[8..112], 0);
        let base = u64_at(first, 40);
        for (i, section) in crate::index::sections_of(first).iter().enumerate() {
            header.parts.push(section_entry(
                112 + i * SECTION_ENTRY_BYTES,
                names[i],
                section,
            ));
            let row = move |row: &[u8]| index_row(names[i], row, base);
            let row_bytes = [48, 0, 24, 0, 8, 8, 8][i];
            parts.push(pages(
                reader, names[i], section, seed, row_bytes, &row, options,
            ));
        }
    }
    parts.insert(0, header);
    parts
}

/// Explains a run of stream heads.
pub(crate) fn run(reader: &mut Reader, first: &[u8], options: InspectOptions) -> Vec<Node> {
    let names = crate::heads::RUN_SECTION_NAMES;
    let mut header = structure(
        "run header",
        0,
        first,
        BLOCK_BYTES,
        RUN_HEADER,
        names.len() * SECTION_ENTRY_BYTES,
    );
    let mut parts = Vec::new();
    if first.len() == BLOCK_BYTES {
        let seed = xxhash_rust::xxh64::xxh64(&first[8..88], 0);
        for (i, section) in crate::heads::run_sections_of(first).iter().enumerate() {
            header.parts.push(section_entry(
                88 + i * SECTION_ENTRY_BYTES,
                names[i],
                section,
            ));
            let row = move |row: &[u8]| match i {
                0 => format!(
                    "stream {:016x}{:016x}: next revision {}, last sequence {}",
                    u64_at(row, 8),
                    u64_at(row, 0),
                    u64_at(row, 16),
                    u64_at(row, 24)
                ),
                _ => format!("{:016x}", u64_at(row, 0)),
            };
            parts.push(pages(
                reader,
                names[i],
                section,
                seed,
                [32, 8, 8][i],
                &row,
                options,
            ));
        }
    }
    parts.insert(0, header);
    parts
}

/// Explains a file of recent ids.
pub(crate) fn recent_ids(reader: &mut Reader, first: &[u8], options: InspectOptions) -> Vec<Node> {
    use crate::recent_ids::{IDENTITY, ROW_BYTES, SECTION_AT, section_of};
    let (fields, rest) = (RECENT_IDS_HEADER, SECTION_ENTRY_BYTES);
    let mut header = structure("recent ids header", 0, first, BLOCK_BYTES, fields, rest);
    if first.len() != BLOCK_BYTES {
        return vec![header];
    }
    let seed = xxhash_rust::xxh64::xxh64(&first[IDENTITY], 0);
    let next_sequence = u64_at(first, 48);
    let section = section_of(first);
    header
        .parts
        .push(section_entry(SECTION_AT, "ids", &section));
    let row = move |row: &[u8]| {
        let sequence = next_sequence.wrapping_sub(u32_at(row, 8).into());
        format!("{:016x}: event {sequence}", u64_at(row, 0))
    };
    let rows = pages(reader, "ids", &section, seed, ROW_BYTES, &row, options);
    vec![header, rows]
}

fn section_entry(at: usize, name: &str, section: &Section) -> Node {
    let Section {
        offset,
        bytes,
        rows,
    } = section;
    let value = format!("offset {offset}, {bytes} bytes, {rows} rows");
    Node::new(to_u64(at), to_u64(SECTION_ENTRY_BYTES), name, value)
}

fn index_row(section: &str, row: &[u8], base: u64) -> String {
    let list = |at: usize| {
        let (count, first, last) = (u32_at(row, at), u32_at(row, at + 4), u32_at(row, at + 8));
        let (first, last) = (
            base.wrapping_add(first.into()),
            base.wrapping_add(last.into()),
        );
        format!(
            "{count} events, sequences {first} to {last}, postings at {}",
            u32_at(row, at + 12)
        )
    };
    match section {
        "streams" => format!(
            "stream {:016x}{:016x}: first revision {}, previous sequence {}, {}",
            u64_at(row, 8),
            u64_at(row, 0),
            u64_at(row, 16),
            u64_at(row, 24),
            list(32)
        ),
        "facets" => format!("type or tag {:016x}: {}", u64_at(row, 0), list(8)),
        _ => format!("{:016x}", u64_at(row, 0)),
    }
}

/// A section: every page's checksum, and its first rows.
fn pages(
    reader: &mut Reader,
    name: &str,
    section: &Section,
    seed: u64,
    row_bytes: usize,
    row: &dyn Fn(&[u8]) -> String,
    options: InspectOptions,
) -> Node {
    let length = section.pages().saturating_mul(to_u64(PAGE_BYTES));
    let value = format!("{} pages", section.pages());
    let mut node = Node::new(section.offset, length, name, value);
    if section.bytes > 0 && !section.fits(reader.file_bytes) {
        return node.problem("lies outside of the file");
    }
    for page in 0..section.pages() {
        let offset = section.offset + page * to_u64(PAGE_BYTES);
        let bytes = match reader.read(offset, PAGE_BYTES) {
            Ok(bytes) if bytes.len() == PAGE_BYTES => bytes,
            Ok(_) => return node.problem("is cut short"),
            Err(error) => {
                let page = Node::new(offset, to_u64(PAGE_BYTES), "page", "");
                node.parts
                    .push(page.problem(format!("cannot be read: {error}")));
                continue;
            }
        };
        let computed = xxhash_rust::xxh64::xxh64(&bytes[8..], seed ^ offset);
        if computed != u64_at(&bytes, 0) {
            let page = Node::new(offset, to_u64(PAGE_BYTES), "page", format!("{page}"));
            node.parts
                .push(page.problem("is damaged: its checksum does not fit"));
            continue;
        }
        if row_bytes == 0 || node.parts.len() >= options.items_max {
            continue;
        }
        let per_page = to_u64(PAYLOAD_BYTES / row_bytes);
        let left = section.rows.saturating_sub(page * per_page).min(per_page);
        let room = options.items_max - node.parts.len();
        for (i, content) in bytes[8..]
            .chunks_exact(row_bytes)
            .take(to_usize(left).min(room))
            .enumerate()
        {
            let at = offset + 8 + to_u64(i * row_bytes);
            node.parts
                .push(Node::new(at, to_u64(row_bytes), "row", row(content)));
        }
    }
    node
}
