//! Which partition a stream belongs to. Part of the format: clients compute it too.

use crate::layout::EVENT_HEADER_BYTES;

/// Seed of the partition function.
pub const PARTITION_SEED: u64 = 0x5452_5554_4844_4231;

/// The partition of a stream: `xxh64(stream, PARTITION_SEED) % partition_count`.
///
/// Streams whose name begins with `$` are exempt ([`is_system_stream`]): they live in the partition
/// they concern.
///
/// # Panics
///
/// If `partition_count` is 0.
pub fn partition_of(stream: &str, partition_count: u32) -> u32 {
    assert!(partition_count > 0, "a database has at least one partition");
    let hash = xxhash_rust::xxh64::xxh64(stream.as_bytes(), PARTITION_SEED);
    u32::try_from(hash % u64::from(partition_count)).expect("a remainder is below its divisor")
}

/// Whether a stream is the system's own: its name begins with `$`. Users may read it, not append to
/// it.
#[inline]
pub fn is_system_stream(stream: &str) -> bool {
    stream.as_bytes().first() == Some(&SYSTEM_STREAM_FIRST_BYTE)
}

/// Whether a canonical event is of one of the system's own streams, without taking it apart. Meant
/// for events that were verified; false for bytes that are too short for an event.
#[inline]
pub fn is_system_event(canonical: &[u8]) -> bool {
    canonical.get(EVENT_HEADER_BYTES) == Some(&SYSTEM_STREAM_FIRST_BYTE)
}

const SYSTEM_STREAM_FIRST_BYTE: u8 = b'$';

#[cfg(test)]
mod tests {
    use super::*;

    /// Published in docs/format.md; never to be changed.
    const VECTORS: &[(&str, u64, [u32; 4])] = &[
        ("a", 0xafe4_30b3_9fc7_f9b7, [0, 1, 3, 183]),
        ("account-1", 0x4b5a_c7f7_4803_8356, [0, 0, 2, 86]),
        ("account-2", 0xdc44_3dd3_6efe_8cbe, [0, 0, 2, 190]),
        ("order/2024/000123", 0x52ca_0733_c7a1_2646, [0, 0, 2, 70]),
        ("zażółć", 0xb135_7c93_8c51_44db, [0, 1, 3, 219]),
        ("Ω", 0x6c53_487b_c26b_b920, [0, 1, 0, 32]),
        (
            "a-stream-name-that-is-longer-than-thirty-two-bytes",
            0x0549_5e6b_3453_5823,
            [0, 0, 3, 35],
        ),
    ];

    #[test]
    fn published_vectors_hold() {
        for (stream, hash, partitions) in VECTORS {
            let actual = xxhash_rust::xxh64::xxh64(stream.as_bytes(), PARTITION_SEED);
            assert_eq!(actual, *hash, "{stream}");
            for (count, partition) in [1, 3, 4, 256].into_iter().zip(partitions) {
                assert_eq!(
                    partition_of(stream, count),
                    *partition,
                    "{stream} of {count}"
                );
            }
        }
    }

    #[test]
    fn system_streams_begin_with_a_dollar_sign() {
        assert!(is_system_stream("$trim"));
        assert!(!is_system_stream("account$"));
        assert!(!is_system_stream(""));
    }

    #[test]
    fn an_event_of_a_system_stream_is_known_by_its_bytes() {
        for stream in ["$trim", "account$", "a"] {
            let mut bytes = Vec::new();
            crate::EventBuilder::new(stream, "t")
                .id(crate::EventId::from_bytes([1; 16]))
                .encode_into(&mut bytes)
                .unwrap();
            assert_eq!(is_system_event(&bytes), is_system_stream(stream));
        }
        assert!(!is_system_event(b"$"));
    }
}
