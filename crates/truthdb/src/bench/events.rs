//! The events that are appended: each tells who wrote it, so that what comes back can be checked.

use truthdb_event::{EventBuilder, EventId, EventRef};

use super::machine::random;

/// Type of the measured events.
const EVENT_TYPE: &str = "measured";

/// Makes events and checks them when they come back. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Payload(std::sync::Arc<Vec<u8>>);

impl Payload {
    /// Payloads of so many bytes that do not compress; `zeros`: that do.
    pub(super) fn new(bytes: usize, zeros: bool) -> Payload {
        let mut state = u64::from(random()) << 32 | u64::from(random()) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        Payload(std::sync::Arc::new(
            (0..bytes).map(|_| if zeros { 0 } else { next() }).collect(),
        ))
    }

    /// Its length.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// What one writer appends.
pub(super) struct Author {
    stream: String,
    writer: u64,
    next: u64,
    payload: Vec<u8>,
}

impl Author {
    /// The writer with this number.
    pub(super) fn new(writer: u64, payload: &Payload) -> Author {
        let stream = format!("bench-{writer}");
        Author {
            stream,
            writer,
            next: 0,
            payload: payload.0.to_vec(),
        }
    }

    /// Gives the next event to `take`, and says what it adds to the digest.
    pub(super) fn next<T>(&mut self, take: impl FnOnce(EventBuilder<'_>) -> T) -> (T, u64) {
        self.next += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.writer + 1).to_le_bytes());
        id[8..].copy_from_slice(&self.next.to_le_bytes());
        // The payload names the event too, as far as there is room.
        let named = self.payload.len().min(8);
        self.payload[..named].copy_from_slice(&self.next.to_le_bytes()[..named]);
        let event = EventBuilder::new(&self.stream, EVENT_TYPE)
            .id(EventId::from_bytes(id))
            .payload(&self.payload);
        (take(event), mix(id))
    }
}

/// Spreads an id over 64 bits, so that sums of them tell sets apart.
fn mix(id: [u8; 16]) -> u64 {
    let (writer, number) = id.split_at(8);
    let word = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("halves of 16 bytes"));
    let mut x = word(writer).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word(number);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How many events, and which: equal for what was acknowledged and for what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Digest {
    /// Events.
    pub events: u64,
    /// Sum of their spread ids.
    pub sum: u64,
}

impl Digest {
    /// Takes another's in.
    pub(super) fn add(&mut self, other: Digest) {
        self.events += other.events;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Takes an event in that was read; `false` if it is not what its writer wrote.
    pub(super) fn read(&mut self, event: &EventRef<'_>, payload: &Payload) -> bool {
        if event.stream().starts_with('$') {
            return true;
        }
        let id = *event.id().as_bytes();
        self.events += 1;
        self.sum = self.sum.wrapping_add(mix(id));
        let found = event.payload();
        let named = payload.bytes().min(8);
        event.event_type() == EVENT_TYPE
            && found.len() == payload.bytes()
            && found[..named] == id[8..8 + named]
            && found[named..] == payload.0[named..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(author: &mut Author) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        let (result, sum) = author.next(|event| event.encode_into(&mut bytes).map(|_| ()));
        result.unwrap();
        (bytes, sum)
    }

    #[test]
    fn the_digest_of_what_is_read_is_that_of_what_was_written_and_notices_other_bytes() {
        let payload = Payload::new(64, false);
        let mut author = Author::new(3, &payload);
        let (mut wrote, mut read) = (Digest::default(), Digest::default());
        for _ in 0..10 {
            let (bytes, sum) = encoded(&mut author);
            wrote.add(Digest { events: 1, sum });
            assert!(read.read(&EventRef::parse(&bytes).unwrap(), &payload));
        }
        assert_eq!(wrote, read);
        let (bytes, _) = encoded(&mut author);
        let other = Payload::new(64, true);
        assert!(!read.read(&EventRef::parse(&bytes).unwrap(), &other));
    }
}
