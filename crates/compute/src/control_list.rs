//! The list of a partition's control events: a start need not look for them in every segment.
//!
//! It holds copies of all control events up to the end of a sealed segment, and is used only if the
//! log has that segment with the same chain hash, which covers everything before it. What decides
//! about modules is read from the log all the same; checkpoints and marks, of which there are as many
//! as the history is long, are taken from the list. Whatever does not fit leaves the list unused.
//! [`crate::Compute::verify`] compares all of it with the log.

use std::sync::Arc;

use truthdb_engine::{Engine, ReadError, SealedEnd};
use truthdb_event::EventRef;
use truthdb_io::{Storage, World};
use truthdb_state::{EventList, ListedHistory, StatePlace, control_list_path};

use crate::answer::Difference;
use crate::catalogue::is_control;
use crate::control::{CONTROL_TYPE, Fact, decode_control};
use crate::error::chain;
use crate::reader::{batch_at, read_types_from};

/// Segments that are sealed before the list is written again.
const LIST_SEGMENTS: u32 = 8;

/// The list that a fold keeps.
pub(crate) struct ControlList {
    engine: Engine,
    storage: Arc<dyn Storage>,
    place: StatePlace,
    /// All control events that the fold has taken, in order.
    events: Vec<(u64, Vec<u8>)>,
    /// Segment that the file ends with; 0: there is no file that can be used.
    listed: u32,
    /// Segment at whose seal the file is due.
    due: u32,
}

/// What a file gives at a start.
pub(crate) struct Listed {
    /// Control events from the first sequence of the log on.
    pub(crate) events: Vec<(u64, Vec<u8>)>,
    /// All control events up to here are among them.
    pub(crate) last_sequence: u64,
}

fn place_of(engine: &Engine, partition: u32) -> StatePlace {
    StatePlace {
        database_id: engine.database_id(),
        partition,
    }
}

/// The list on disk, if it is of this log's history. Damage is told as text.
fn read_list(
    engine: &Engine,
    storage: &dyn Storage,
    place: &StatePlace,
) -> Result<Option<EventList>, String> {
    let path = control_list_path(place);
    let list = EventList::read(storage, &path, place).map_err(|error| chain(&error))?;
    Ok(list.filter(|list| {
        let ListedHistory {
            segment,
            last_sequence,
            chain,
        } = list.history;
        let named = SealedEnd {
            segment,
            last_sequence,
            chain,
        };
        engine.sealed_segment(place.partition, segment) == Some(named)
    }))
}

/// Whether the log has exactly this event at this sequence.
fn is_in_log(
    engine: &Engine,
    partition: u32,
    sequence: u64,
    bytes: &[u8],
) -> Result<bool, ReadError> {
    let batch = batch_at(engine, partition, sequence)?;
    Ok(batch.is_some_and(|batch| {
        let mut events = batch.events();
        events.any(|stored| stored.sequence == sequence && stored.bytes == bytes)
    }))
}

/// Whether an event is one of which there are more the longer the history is.
fn is_frequent(event: &EventRef<'_>) -> bool {
    let control = decode_control(event.payload());
    control.is_some_and(|control| {
        matches!(
            control.fact,
            Fact::StateCheckpoint { .. } | Fact::Snapshot {}
        )
    })
}

impl ControlList {
    pub(crate) fn new(engine: &Engine, world: &World, partition: u32) -> ControlList {
        ControlList {
            engine: engine.clone(),
            storage: Arc::clone(&world.storage),
            place: place_of(engine, partition),
            events: Vec::new(),
            listed: 0,
            due: 1,
        }
    }

    /// What the file gives; none if there is none that can be used.
    pub(crate) fn load(&mut self) -> Result<Option<Listed>, ReadError> {
        let partition = self.place.partition;
        let list = match read_list(&self.engine, &*self.storage, &self.place) {
            Ok(Some(list)) => list,
            Ok(None) => return Ok(None),
            Err(reason) => {
                tracing::warn!(
                    partition,
                    "{reason}; control events are looked for in the log"
                );
                return Ok(None);
            }
        };
        let first = self.engine.first_sequence(partition);
        let mut events = list.events;
        events.retain(|(sequence, _)| *sequence >= first);
        for (sequence, bytes) in &events {
            let event = EventRef::parse(bytes).ok().filter(is_control);
            let fits = match &event {
                Some(event) if is_frequent(event) => true,
                Some(_) => is_in_log(&self.engine, partition, *sequence, bytes)?,
                None => false,
            };
            if !fits {
                tracing::warn!(
                    partition,
                    sequence,
                    "the list of control events is not that of the log and is not used"
                );
                return Ok(None);
            }
        }
        self.listed = list.history.segment;
        self.due = self.listed.saturating_add(LIST_SEGMENTS);
        Ok(Some(Listed {
            events,
            last_sequence: list.history.last_sequence,
        }))
    }

    /// Takes a control event; they come in order.
    pub(crate) fn note(&mut self, sequence: u64, bytes: &[u8]) {
        self.events.push((sequence, bytes.to_vec()));
    }

    /// Writes the list once enough segments were sealed since, or `now` if any was. All control
    /// events up to `controlled` were noted.
    pub(crate) fn write(&mut self, controlled: u64, now: bool) {
        let partition = self.place.partition;
        let Some(end) = self.engine.last_sealed(partition) else {
            return;
        };
        let is_due = end.segment >= self.due || now && end.segment > self.listed;
        if !is_due || end.last_sequence > controlled {
            return;
        }
        let first = self.engine.first_sequence(partition);
        self.events.retain(|(sequence, _)| *sequence >= first);
        let known = self
            .events
            .partition_point(|(s, _)| *s <= end.last_sequence);
        let list = EventList {
            history: ListedHistory {
                segment: end.segment,
                last_sequence: end.last_sequence,
                chain: end.chain,
            },
            events: self.events[..known].to_vec(),
        };
        // After a failure it is tried again with a later segment: it only costs time.
        self.due = end.segment.saturating_add(LIST_SEGMENTS);
        match list.write(&*self.storage, &control_list_path(&self.place), &self.place) {
            Ok(()) => self.listed = end.segment,
            Err(error) => {
                tracing::warn!(partition, error = %chain(&error),
                    "the list of control events was not written; the next start may take longer");
            }
        }
    }
}

/// What differs between the list on disk and the log, if it would be used.
pub(crate) fn compare(
    engine: &Engine,
    storage: &dyn Storage,
    partition: u32,
) -> Result<Option<Difference>, ReadError> {
    // One that is damaged, or of another history, is not used.
    let Ok(Some(list)) = read_list(engine, storage, &place_of(engine, partition)) else {
        return Ok(None);
    };
    let first = engine.first_sequence(partition);
    let last = list.history.last_sequence;
    let mut listed = list.events.iter().filter(|(s, _)| *s >= first).peekable();
    let mut found = None;
    let differs = |sequence, recorded: &str, replayed: &str| Difference {
        partition,
        module: String::new(),
        generation: 0,
        sequence,
        what: "control list".to_owned(),
        recorded: recorded.to_owned(),
        replayed: replayed.to_owned(),
    };
    read_types_from(engine, partition, first, &[CONTROL_TYPE], |stored| {
        if stored.sequence > last || found.is_some() {
            return;
        }
        found = match listed.next() {
            Some((sequence, bytes)) if *sequence == stored.sequence => {
                let same = bytes == stored.bytes;
                (!same).then(|| differs(*sequence, "another event", "a control event"))
            }
            Some((sequence, _)) if *sequence < stored.sequence => {
                Some(differs(*sequence, "a control event", "none"))
            }
            _ => Some(differs(stored.sequence, "none", "a control event")),
        };
    })?;
    let surplus = listed
        .next()
        .map(|(s, _)| differs(*s, "a control event", "none"));
    Ok(found.or(surplus))
}
