//! A list of a few of a partition's events, by copy: those that would else be looked for in every
//! segment.
//!
//! It knows all of its kind up to the end of one sealed segment, and is bound to that segment's chain
//! hash, which covers everything before. It is derived data: a list that is damaged, cut, or of another
//! history is none, and the events are looked for in the log.

use std::io;

use truthdb_io::Storage;

use crate::blocks;
use crate::layout::{FieldReader, FieldWriter, StateFormatError, StatePlace, put_checksum};
use crate::limits::{small, to_u64, to_usize};

/// Newest version of the lists, and the one written.
pub const EVENT_LIST_VERSION: u16 = 1;
/// Most bytes of a list.
const EVENT_LIST_BYTES_MAX: u64 = 1 << 30;

const EVENT_LIST: &str = "list of events";
const EVENT_LIST_MAGIC: [u8; 4] = *b"TEVL";
/// Where the length of the list stands, in bytes.
const LENGTH_OFFSET: usize = 88;

/// The history that a list knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedHistory {
    /// The sealed segment that it ends with.
    pub segment: u32,
    /// Last sequence of that segment.
    pub last_sequence: u64,
    /// Chain hash of that segment.
    pub chain: [u8; 32],
}

/// See the module's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventList {
    /// What it knows.
    pub history: ListedHistory,
    /// Sequences, ascending, with the events' canonical bytes.
    pub events: Vec<(u64, Vec<u8>)>,
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventListError {
    /// The operating system's error.
    #[error("{path} cannot be read or written; it is derived, the log is not concerned")]
    Io {
        /// The file, relative to the data directory.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged or belongs elsewhere; it is derived, the log is not concerned")]
    Format {
        /// The file, relative to the data directory.
        path: String,
        /// What is wrong.
        #[source]
        source: StateFormatError,
    },
}

/// Path of a partition's list of control events.
pub fn control_list_path(place: &StatePlace) -> String {
    format!("{}/control-events.bin", place.directory())
}

impl EventList {
    /// The file, padded to a whole block.
    pub fn encode(&self, place: &StatePlace) -> Vec<u8> {
        let mut fields = FieldWriter::default();
        fields
            .u64(0)
            .bytes(&EVENT_LIST_MAGIC)
            .u16(EVENT_LIST_VERSION)
            .u16(0)
            .bytes(&place.database_id)
            .u32(place.partition)
            .u32(self.history.segment)
            .u64(self.history.last_sequence)
            .bytes(&self.history.chain)
            .u64(to_u64(self.events.len()))
            .u64(0);
        for (sequence, event) in &self.events {
            fields.u64(*sequence).u32(small(event.len())).bytes(event);
        }
        let mut bytes = fields.bytes;
        let length = to_u64(bytes.len());
        bytes[LENGTH_OFFSET..LENGTH_OFFSET + 8].copy_from_slice(&length.to_le_bytes());
        bytes.resize(blocks::align(bytes.len()), 0);
        put_checksum(&mut bytes, 0);
        bytes
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`StateFormatError`] if it is not exactly what [`EventList::encode`] wrote for this place.
    pub fn decode(bytes: &[u8], place: &StatePlace) -> Result<EventList, StateFormatError> {
        let mut fields = FieldReader::new(EVENT_LIST, bytes);
        fields.preamble(EVENT_LIST_MAGIC, EVENT_LIST_VERSION, 0)?;
        fields.reserved(2)?;
        fields.place(place)?;
        let history = ListedHistory {
            segment: fields.u32()?,
            last_sequence: fields.u64()?,
            chain: fields.array()?,
        };
        let (count, length) = (fields.u64()?, fields.u64()?);
        let mut events = Vec::new();
        let mut before = 0;
        for _ in 0..count {
            let sequence = fields.u64()?;
            if sequence <= before || sequence > history.last_sequence {
                return Err(fields.field("sequence", "sequences ascend up to the list's last one"));
            }
            before = sequence;
            let event_bytes = to_usize(u64::from(fields.u32()?));
            events.push((sequence, fields.bytes(event_bytes)?.to_vec()));
        }
        if length != to_u64(fields.at()) || bytes.len() != blocks::align(fields.at()) {
            return Err(fields.field("length", "it is that of the list"));
        }
        fields.padding()?;
        Ok(EventList { history, events })
    }

    /// The list of a file; none if there is no file.
    ///
    /// # Errors
    /// [`EventListError`]: look for the events in the log.
    pub fn read(
        storage: &dyn Storage,
        path: &str,
        place: &StatePlace,
    ) -> Result<Option<EventList>, EventListError> {
        let bytes = match blocks::read_file(storage, path, EVENT_LIST_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(io_error(path))?,
        };
        let list = EventList::decode(&bytes, place).map_err(|source| EventListError::Format {
            path: path.to_owned(),
            source,
        })?;
        Ok(Some(list))
    }

    /// Puts the list into the place of the one before, durably and at once.
    ///
    /// # Errors
    /// [`EventListError::Io`]; the list of before may still be there.
    pub fn write(
        &self,
        storage: &dyn Storage,
        path: &str,
        place: &StatePlace,
    ) -> Result<(), EventListError> {
        let new = format!("{path}.new");
        blocks::write_new(storage, &new, &self.encode(place)).map_err(io_error(path))?;
        storage.durable_rename(&new, path).map_err(io_error(path))
    }
}

fn io_error(path: &str) -> impl FnOnce(io::Error) -> EventListError {
    move |source| EventListError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: StatePlace = StatePlace {
        database_id: *b"sixteen bytes id",
        partition: 3,
    };

    fn list() -> EventList {
        EventList {
            history: ListedHistory {
                segment: 7,
                last_sequence: 900,
                chain: [5; 32],
            },
            events: vec![(2, b"first".to_vec()), (900, vec![9; 5000])],
        }
    }

    #[test]
    fn a_list_survives_its_file_and_belongs_to_its_place() {
        let bytes = list().encode(&PLACE);
        assert_eq!(EventList::decode(&bytes, &PLACE), Ok(list()));
        let elsewhere = StatePlace {
            partition: 4,
            ..PLACE
        };
        assert!(matches!(
            EventList::decode(&bytes, &elsewhere),
            Err(StateFormatError::Misplaced { .. })
        ));
    }

    #[test]
    fn what_is_damaged_cut_or_out_of_order_is_no_list() {
        let bytes = list().encode(&PLACE);
        for at in (0..bytes.len()).step_by(97) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            assert!(EventList::decode(&damaged, &PLACE).is_err(), "at {at}");
        }
        for cut in [0, 11, 95, 4096] {
            assert!(EventList::decode(&bytes[..cut], &PLACE).is_err(), "{cut}");
        }
        let mut wrong = list();
        wrong.events.swap(0, 1);
        assert!(EventList::decode(&wrong.encode(&PLACE), &PLACE).is_err());
        wrong.events = vec![(901, Vec::new())];
        assert!(EventList::decode(&wrong.encode(&PLACE), &PLACE).is_err());
    }
}
