//! Inspection: any file of the data directory explained down to the field, damaged or not.
//!
//! Nothing is believed and nothing is refused: what a field says is shown, what contradicts it is
//! named beside it, and what
//! cannot be understood is skipped up to the next thing that can. Long lists come in pages.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use truthdb_event::{EventRef, event_checksum};
use truthdb_io::{AlignedBuf, BLOCK_BYTES, File};

use crate::batch::{BATCH_HEADER_BYTES, BatchHeader, StoredBatch, body_checksum};
use crate::inspect_index::{index, recent_ids, run};
use crate::inspect_layout::{
    BATCH_HEADER, FOOTER, MANIFEST, Node, PACKED_BLOCK, SCHEMA, SEGMENT_HEADER, TRIM, structure,
    table_row, time_text,
};
use crate::layout::{Place, align_block, is_zero, to_u64, to_usize};
use crate::segment::{
    FOOTER_BYTES, Footer, PACKED_BLOCK_HEADER_BYTES, PackedBlockHeader, SEGMENT_HEADER_BYTES,
    SPARSE_ENTRY_BYTES, SegmentHeader, SegmentKind, decode_sparse_index,
};
use crate::source::{Link, NoBytes, NoItem, Source, Subject, next_packed};

/// Which part of a file is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InspectOptions {
    /// Where in a segment to begin, in bytes: a batch, a packed block, or any place, from which the
    /// next one is searched.
    /// 0 means the start of the data.
    pub offset: u64,
    /// Batches, blocks or rows of a table shown at most.
    pub items_max: usize,
    /// Whether the events of each batch are shown.
    pub events: bool,
}

impl Default for InspectOptions {
    /// The first 20 items, without events.
    fn default() -> InspectOptions {
        InspectOptions {
            offset: 0,
            items_max: 20,
            events: false,
        }
    }
}

/// A file, explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// File, relative to the data directory.
    pub path: String,
    /// What the file is.
    pub kind: &'static str,
    /// Its length in bytes.
    pub file_bytes: u64,
    /// Its parts.
    pub parts: Vec<Node>,
    /// Where to go on for the next page, if there is one.
    pub next_offset: Option<u64>,
    /// Problems in the parts shown.
    pub problems: u64,
}

impl Inspection {
    /// The same as text: offset, name, value, remark, one line each.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}: {}, {} bytes\n", self.path, self.kind, self.file_bytes);
        self.parts
            .iter()
            .for_each(|part| append_text(&mut text, part, 0));
        if let Some(offset) = self.next_offset {
            text.push_str(&format!("more from offset {offset} on\n"));
        }
        match self.problems {
            0 => {}
            1 => text.push_str("1 problem, marked with !\n"),
            problems => text.push_str(&format!("{problems} problems, marked with !\n")),
        }
        text
    }
}

fn append_text(text: &mut String, node: &Node, depth: usize) {
    let mark = if node.problem.is_some() { '!' } else { ' ' };
    let indent = "  ".repeat(depth);
    let mut line = format!("{mark}{:>12}  {indent}{}", node.offset, node.name);
    if !node.value.is_empty() {
        line = format!("{line} = {}", node.value);
    }
    if let Some(note) = &node.note {
        line = format!("{line}  ({note})");
    }
    if let Some(problem) = &node.problem {
        line = format!("{line}  {problem}");
    }
    text.push_str(&line);
    text.push('\n');
    node.parts
        .iter()
        .for_each(|part| append_text(text, part, depth + 1));
}

/// Explains a file. `path` is used for its name only.
///
/// # Errors
///
/// If the file's length or its first block cannot be read. Unreadable blocks elsewhere are shown as such.
pub fn inspect_file(
    path: &str,
    file: &Arc<dyn File>,
    options: InspectOptions,
) -> io::Result<Inspection> {
    let file_bytes = file.len()?;
    let mut bytes = Reader {
        file: Arc::clone(file),
        file_bytes,
    };
    let first = bytes.read(0, BLOCK_BYTES)?;
    let magic: &[u8] = first.get(8..12).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = name.strip_suffix(".new").unwrap_or(name);
    let by_name: Option<&[u8; 4]> = match name {
        "manifest.bin" => Some(b"TMAN"),
        "schema.bin" => Some(b"TSCH"),
        "trim.bin" => Some(b"TTRM"),
        _ if name.ends_with(".log") => Some(b"TSEG"),
        _ if name.ends_with(".idx") => Some(b"TIDX"),
        _ if name.ends_with(".run") => Some(b"THDR"),
        "recent-ids.bin" => Some(b"TIDS"),
        _ => None,
    };
    let known: [&[u8; 4]; 7] = [
        b"TSEG", b"TIDX", b"THDR", b"TIDS", b"TMAN", b"TSCH", b"TTRM",
    ];
    let by_magic = known.into_iter().find(|known| known.as_slice() == magic);
    let block = |name, fields| vec![structure(name, 0, &first, BLOCK_BYTES, fields, 0)];
    let mut next_offset = None;
    let (kind, mut parts) = match by_magic.or(by_name) {
        Some(b"TMAN") => ("manifest of a database", block("manifest", MANIFEST)),
        Some(b"TSCH") => (
            "format versions and limits of a database",
            block("schema", SCHEMA),
        ),
        Some(b"TTRM") => ("trim point of a partition", block("trim point", TRIM)),
        Some(b"TIDX") => (
            "index of a sealed segment",
            index(&mut bytes, &first, options),
        ),
        Some(b"THDR") => ("heads of streams", run(&mut bytes, &first, options)),
        Some(b"TIDS") => (
            "event ids that a writer remembered at a clean stop",
            recent_ids(&mut bytes, &first, options),
        ),
        Some(b"TSEG") => {
            let (parts, next) = segment(&mut bytes, &first, options);
            next_offset = next;
            ("segment of the log", parts)
        }
        _ => ("not a file of the log", unknown(&first)),
    };
    if by_magic.is_none() && by_name.is_some() {
        let node = Node::new(
            8,
            4,
            "magic",
            String::from_utf8_lossy(magic).escape_debug().to_string(),
        );
        parts.insert(
            0,
            node.problem("the file has not the magic letters that its name promises"),
        );
    }
    let problems = parts.iter().map(Node::problem_count).sum();
    Ok(Inspection {
        path: path.to_owned(),
        kind,
        file_bytes,
        parts,
        next_offset,
        problems,
    })
}

/// Bytes of a file at any place.
pub(crate) struct Reader {
    file: Arc<dyn File>,
    pub(crate) file_bytes: u64,
}

impl Reader {
    /// Up to `bytes` bytes at `offset`, fewer at the end of the file.
    pub(crate) fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let end = (offset + to_u64(bytes)).min(self.file_bytes);
        if offset >= end {
            return Ok(Vec::new());
        }
        let start = offset - offset % to_u64(BLOCK_BYTES);
        let length = to_usize(align_block(end) - start);
        let mut buf = AlignedBuf::new_zeroed(length);
        let read = self.file.read_at(&mut buf, length, start)?;
        let at = to_usize(offset - start);
        let to = to_usize(end - start).min(read);
        Ok(buf.get(at..to).unwrap_or_default().to_vec())
    }
}

impl Source for Reader {
    fn get(&mut self, offset: u64, bytes: usize) -> Result<bytes::Bytes, NoBytes> {
        let found = self
            .read(offset, bytes)
            .map_err(|error| NoBytes::Io(offset, error))?;
        match found.len() == bytes {
            true => Ok(found.into()),
            false => Err(NoBytes::Short(offset + to_u64(bytes))),
        }
    }
}

fn unknown(first: &[u8]) -> Vec<Node> {
    let rows = first.chunks(32).take(8).enumerate();
    rows.map(|(i, row)| {
        Node::new(
            to_u64(i * 32),
            to_u64(row.len()),
            "bytes",
            crate::proof::hex(row),
        )
    })
    .collect()
}

fn segment(reader: &mut Reader, first: &[u8], options: InspectOptions) -> (Vec<Node>, Option<u64>) {
    let mut parts = vec![structure(
        "segment header",
        0,
        first,
        BLOCK_BYTES,
        SEGMENT_HEADER,
        0,
    )];
    let header = SegmentHeader::decode(first).ok();
    let footer_at = reader.file_bytes.saturating_sub(FOOTER_BYTES) / FOOTER_BYTES * FOOTER_BYTES;
    let last = reader.read(footer_at, BLOCK_BYTES).unwrap_or_default();
    let footer = Footer::decode(&last).ok();
    let seems_sealed = last.get(8..12) == Some(b"TFTR");
    let data_end = footer.map_or(reader.file_bytes, |footer| {
        footer.data_end.min(reader.file_bytes)
    });
    let place = header
        .map(|header| header.place)
        .or_else(|| footer.map(|footer| footer.place));
    let kind = header
        .map(|h| h.kind)
        .or_else(|| footer.map(|f| f.kind))
        .unwrap_or(SegmentKind::Active);
    let mut walk = Data {
        reader,
        options,
        place,
        kind,
        position: options.offset.max(SEGMENT_HEADER_BYTES),
        end: data_end,
        parts: Vec::new(),
    };
    let next_offset = walk.run();
    parts.append(&mut walk.parts);
    if let Some(footer) = footer {
        parts.push(sparse(reader, &footer, options));
    }
    if seems_sealed {
        parts.push(structure(
            "segment footer",
            footer_at,
            &last,
            BLOCK_BYTES,
            FOOTER,
            0,
        ));
    }
    (parts, next_offset)
}

fn sparse(reader: &mut Reader, footer: &Footer, options: InspectOptions) -> Node {
    let (offset, bytes) = (footer.sparse_offset, footer.sparse_bytes());
    let node = Node::new(
        offset,
        bytes,
        "sparse index",
        format!("{} entries", footer.sparse_entries),
    );
    let content = match reader.read(offset, to_usize(bytes.min(reader.file_bytes))) {
        Ok(content) => content,
        Err(error) => return node.problem(format!("cannot be read: {error}")),
    };
    match decode_sparse_index(&content, footer.sparse_entries) {
        Err(error) => node.problem(error.to_string()),
        Ok(entries) => {
            let shown = entries
                .iter()
                .take(options.items_max)
                .enumerate()
                .map(|(i, entry)| {
                    let offset = offset + to_u64(i * SPARSE_ENTRY_BYTES);
                    let value = format!("sequence {} at offset {}", entry.sequence, entry.offset);
                    Node::new(offset, to_u64(SPARSE_ENTRY_BYTES), "entry", value)
                        .note(time_text(entry.timestamp_ns))
                });
            Node {
                parts: shown.collect(),
                ..node
            }
        }
    }
}

/// The data of a segment being walked.
struct Data<'a> {
    reader: &'a mut Reader,
    options: InspectOptions,
    place: Option<Place>,
    kind: SegmentKind,
    position: u64,
    end: u64,
    parts: Vec<Node>,
}

impl Data<'_> {
    /// Shows items up to the limit; returns where to go on.
    fn run(&mut self) -> Option<u64> {
        for _ in 0..self.options.items_max {
            if self.position >= self.end {
                return None;
            }
            let before = self.position;
            let node = match self.item() {
                Ok(Some(node)) => node,
                Ok(None) => return None,
                Err(error) => {
                    self.position = align_block(before + 1);
                    let length = self.position - before;
                    Node::new(before, length, "block", "")
                        .problem(format!("cannot be read: {error}"))
                }
            };
            assert!(self.position > before, "every item moves on");
            self.parts.push(node);
        }
        (self.position < self.end).then_some(self.position)
    }

    fn item(&mut self) -> io::Result<Option<Node>> {
        let boundary = align_block(self.position).min(self.end);
        let rest = self
            .reader
            .read(self.position, to_usize(boundary - self.position))?;
        if is_zero(&rest) {
            self.position = boundary;
        }
        if self.position >= self.end {
            return Ok(None);
        }
        let left = to_usize(align_block(self.position + 1) - self.position);
        let block = self.reader.read(self.position, left)?;
        if is_zero(&block) {
            return self.zeros();
        }
        match self.kind {
            SegmentKind::Active => self.batch(),
            SegmentKind::Packed => self.packed(),
        }
        .map(Some)
    }

    /// A stretch of zero blocks.
    fn zeros(&mut self) -> io::Result<Option<Node>> {
        let start = self.position;
        while self.position < self.end {
            let bytes = self.reader.read(self.position, 1 << 20)?;
            match bytes.iter().position(|byte| *byte != 0) {
                Some(at) => {
                    let found = self.position + to_u64(at);
                    self.position = (found - found % to_u64(BLOCK_BYTES)).max(start + 1);
                    break;
                }
                None => self.position += to_u64(bytes.len().max(1)),
            }
        }
        self.position = self.position.min(self.end);
        let length = self.position - start;
        Ok(Some(Node::new(
            start,
            length,
            "zeros",
            format!("{length} bytes"),
        )))
    }

    fn batch(&mut self) -> io::Result<Node> {
        let offset = self.position;
        let bytes = self.reader.read(offset, BATCH_HEADER_BYTES)?;
        let mut node = structure("batch", offset, &bytes, BATCH_HEADER_BYTES, BATCH_HEADER, 0);
        let header = match BatchHeader::decode(&bytes) {
            Ok(header) => header,
            Err(error) => return self.debris(node, &error.to_string()),
        };
        self.position = header.end_offset();
        node.length = header.end_offset() - offset;
        if let Some(place) = &self.place
            && let Err(error) = header.check_place(place, offset)
        {
            node.problem = Some(error.to_string());
        }
        if header.mark {
            node.name = "mark".to_owned();
            node.value = format!("next sequence {}", header.first_sequence);
            return Ok(node);
        }
        node.value = sequences(header.first_sequence, header.event_count);
        let body_at = offset + to_u64(BATCH_HEADER_BYTES);
        let body = self
            .reader
            .read(body_at, to_usize(header.body_bytes.into()))?;
        if body.len() < to_usize(header.body_bytes.into()) {
            node.problem = Some(format!("its body is cut short: {} bytes", body.len()));
            self.position = self.end;
            return Ok(node);
        }
        if body_checksum(&body, header.event_count) != header.body_checksum {
            node.problem = Some("its table is damaged: the checksum does not fit".to_owned());
        }
        if self.options.events || node.problem.is_none() {
            let shown = events(body_at, &body, header.event_count, header.first_sequence);
            node.parts.extend(
                shown
                    .into_iter()
                    .filter(|event| self.options.events || event.problem.is_some()),
            );
        }
        Ok(node)
    }

    /// Something that is no header: skips to the next block that begins with one.
    fn debris(&mut self, node: Node, reason: &str) -> io::Result<Node> {
        let start = self.position;
        let mut at = align_block(start + 1);
        while at < self.end {
            let bytes = self.reader.read(at, BLOCK_BYTES).unwrap_or_default();
            if is_zero(&bytes) || BatchHeader::decode(&bytes).is_ok() {
                break;
            }
            at += to_u64(BLOCK_BYTES);
        }
        self.position = at.min(self.end).max(start + 1);
        let length = self.position - start;
        let shown = Node {
            name: "no batch".to_owned(),
            length,
            ..node
        };
        Ok(shown.problem(format!("{reason}; skipped {length} bytes")))
    }

    fn packed(&mut self) -> io::Result<Node> {
        let offset = self.position;
        let bytes = self.reader.read(offset, PACKED_BLOCK_HEADER_BYTES)?;
        let length = PACKED_BLOCK_HEADER_BYTES;
        let mut node = structure("packed block", offset, &bytes, length, PACKED_BLOCK, 0);
        let header = match PackedBlockHeader::decode(&bytes) {
            Ok(header) => header,
            Err(error) => return self.packed_debris(node, &error.to_string()),
        };
        node.length = header.end_offset() - offset;
        node.value = sequences(header.first_sequence, header.event_count);
        let place = self.place.unwrap_or(header.place);
        let subject = Subject {
            path: String::new(),
            place,
            kind: SegmentKind::Packed,
        };
        let mut position = offset;
        let found = next_packed(
            self.reader,
            &subject,
            &mut position,
            self.end,
            &Link::default(),
        );
        self.position = header.end_offset().max(offset + 1);
        match found {
            Ok(Some(batches)) => {
                let shown = batches
                    .iter()
                    .map(|batch| packed_batch(batch, self.options));
                node.parts.extend(shown);
            }
            Ok(None) => {}
            Err(NoItem::Corrupt { reason, .. }) => {
                node.problem = Some(crate::verify::with_causes(&reason));
            }
            Err(NoItem::Bytes(NoBytes::Io(_, error))) => return Err(error),
            Err(NoItem::Bytes(NoBytes::Short(_))) => {
                node.problem = Some("reaches beyond the end of the file".to_owned());
            }
        }
        Ok(node)
    }

    /// Packed blocks are aligned to 8 bytes: the next magic is searched.
    fn packed_debris(&mut self, node: Node, reason: &str) -> io::Result<Node> {
        let start = self.position;
        let mut at = start + 8;
        'search: while at < self.end {
            let bytes = self.reader.read(at, 1 << 20)?;
            for step in (0..bytes.len().saturating_sub(PACKED_BLOCK_HEADER_BYTES)).step_by(8) {
                if PackedBlockHeader::decode(&bytes[step..]).is_ok() {
                    at += to_u64(step);
                    break 'search;
                }
            }
            at += (1 << 20) - 4096;
        }
        self.position = at.min(self.end);
        let length = self.position - start;
        let shown = Node {
            name: "no packed block".to_owned(),
            length,
            ..node
        };
        Ok(shown.problem(format!("{reason}; skipped {length} bytes")))
    }
}

fn sequences(first: u64, count: u32) -> String {
    match count {
        1 => format!("sequence {first}"),
        _ => format!(
            "sequences {first} to {}",
            first.saturating_add(u64::from(count)) - 1
        ),
    }
}

fn packed_batch(batch: &StoredBatch, options: InspectOptions) -> Node {
    let value = sequences(batch.first_sequence, batch.event_count);
    let mut node = Node::new(0, to_u64(batch.body_bytes()), "batch", value);
    node.note = Some(time_text(batch.timestamp_ns));
    if options.events {
        node.parts = events(0, &batch.body, batch.event_count, batch.first_sequence);
    }
    node
}

/// The events of a body, as far as its table makes sense.
fn events(body_at: u64, body: &[u8], event_count: u32, first_sequence: u64) -> Vec<Node> {
    let count = to_usize(event_count.into());
    let mut at = count * 20;
    let mut nodes = Vec::new();
    for (row, sequence) in (0..count).zip(first_sequence..) {
        let offset = body_at + to_u64(at);
        let Some(entry) = table_row(body, count, row) else {
            break;
        };
        let end = at + to_usize(entry.length.into());
        let Some(bytes) = body.get(at..end) else {
            let node = Node::new(
                offset,
                entry.length.into(),
                "event",
                format!("sequence {sequence}"),
            );
            nodes.push(node.problem("reaches beyond the batch"));
            break;
        };
        nodes.push(event(
            offset,
            bytes,
            sequence,
            entry.revision,
            entry.checksum,
        ));
        at = end;
    }
    nodes
}

fn event(offset: u64, bytes: &[u8], sequence: u64, revision: u64, checksum: u64) -> Node {
    let value = format!("sequence {sequence}, revision {revision}");
    let mut node = Node::new(offset, to_u64(bytes.len()), "event", value);
    let computed = event_checksum(bytes);
    if computed != checksum {
        let problem =
            format!("is damaged: its checksum is {checksum:016x}, its bytes give {computed:016x}");
        node.problem = Some(problem);
    }
    let event = match EventRef::parse(bytes) {
        Ok(event) => event,
        Err(error) => {
            let also = node
                .problem
                .take()
                .map(|text| format!("{text}; "))
                .unwrap_or_default();
            return node.problem(format!("{also}it is not a canonical event: {error}"));
        }
    };
    let base = bytes.as_ptr().addr();
    let mut part = |name: &str, bytes: &[u8], value: String| {
        let at = to_u64(bytes.as_ptr().addr().saturating_sub(base));
        node.parts
            .push(Node::new(offset + at, to_u64(bytes.len()), name, value));
    };
    part("id", &bytes[..16], event.id().to_string());
    part(
        "stream",
        event.stream().as_bytes(),
        event.stream().to_owned(),
    );
    part(
        "type",
        event.event_type().as_bytes(),
        event.event_type().to_owned(),
    );
    part(
        "content_type",
        event.content_type().as_bytes(),
        event.content_type().to_owned(),
    );
    for tag in event.tags() {
        part("tag", tag.as_bytes(), tag.to_owned());
    }
    for (key, value) in event.metadata() {
        part(
            &format!("metadata {key}"),
            value.as_bytes(),
            value.escape_debug().to_string(),
        );
    }
    part("payload", event.payload(), payload_text(event.payload()));
    node
}

/// The beginning of a payload: text if it is text, else hexadecimal.
fn payload_text(payload: &[u8]) -> String {
    const SHOWN_BYTES: usize = 64;
    let start = &payload[..payload.len().min(SHOWN_BYTES)];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text.escape_debug().to_string(),
        Err(error) if error.error_len().is_none() && payload.len() > SHOWN_BYTES => {
            String::from_utf8_lossy(&start[..error.valid_up_to()])
                .escape_debug()
                .to_string()
        }
        Err(_) => crate::proof::hex(start),
    };
    if payload.len() > SHOWN_BYTES {
        format!("{text}… ({} bytes)", payload.len())
    } else {
        text
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
