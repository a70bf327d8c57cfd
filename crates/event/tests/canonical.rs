//! Canonical events: round trips, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use truthdb_event::*;

fn valid() -> Vec<u8> {
    let mut bytes = Vec::new();
    EventBuilder::new("account-1", "deposited")
        .id(EventId::from_bytes([7; 16]))
        .content_type("application/json")
        .tag("a")
        .tag("b")
        .metadata("causation_id", "x")
        .payload(b"{}")
        .encode_into(&mut bytes)
        .unwrap();
    bytes
}

fn names() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,60}"
}

proptest! {
    #[test]
    fn what_is_built_is_parsed(
        id in proptest::array::uniform16(1u8..),
        stream in names(),
        event_type in names(),
        content_type in "[a-z/+]{0,40}",
        tags in proptest::collection::btree_set(names(), 0..TAGS_MAX),
        metadata in proptest::collection::btree_map(names(), ".{0,100}", 0..20),
        payload in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut builder = EventBuilder::new(&stream, &event_type)
            .id(EventId::from_bytes(id))
            .content_type(&content_type)
            .payload(&payload);
        for tag in &tags {
            builder = builder.tag(tag);
        }
        for (key, value) in &metadata {
            builder = builder.metadata(key, value);
        }
        let mut bytes = vec![1, 2, 3];
        let written = builder.encode_into(&mut bytes).unwrap();
        let encoded = &bytes[3..];
        prop_assert_eq!(written, encoded.len());
        prop_assert_eq!(EventRef::parse_prefix(encoded).unwrap(), written);
        let event = EventRef::parse(encoded).unwrap();
        prop_assert_eq!(event, EventRef::parse_trusted(encoded).unwrap());
        prop_assert_eq!(event.id(), EventId::from_bytes(id));
        prop_assert_eq!(event.stream(), stream);
        prop_assert_eq!(event.event_type(), event_type);
        prop_assert_eq!(event.content_type(), content_type);
        prop_assert!(event.tags().eq(tags.iter().map(String::as_str)));
        let pairs = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        prop_assert!(event.metadata().eq(pairs));
        prop_assert_eq!(event.payload(), payload);
        prop_assert_eq!(event.bytes(), encoded);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(event) = EventRef::parse_trusted(&bytes) {
            let _ = (event.tags().count(), event.metadata().count());
        }
        let _ = EventRef::parse(&bytes);
    }

    #[test]
    fn what_is_parsed_has_one_encoding(at in 0usize..70, mask in 1u8..) {
        let mut bytes = valid();
        let at = at % bytes.len();
        bytes[at] ^= mask;
        if let Ok(event) = EventRef::parse(&bytes) {
            let mut builder = EventBuilder::new(event.stream(), event.event_type())
                .id(event.id())
                .content_type(event.content_type())
                .payload(event.payload());
            for tag in event.tags() {
                builder = builder.tag(tag);
            }
            for (key, value) in event.metadata() {
                builder = builder.metadata(key, value);
            }
            let mut again = Vec::new();
            builder.encode_into(&mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}

#[test]
fn every_prefix_and_every_longer_event_is_refused() {
    let bytes = valid();
    for length in 0..bytes.len() {
        assert!(EventRef::parse(&bytes[..length]).is_err(), "{length}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(
        EventRef::parse(&longer),
        Err(EventError::TrailingBytes { extra: 1 })
    );
}

fn refused(change: impl for<'a> FnOnce(EventBuilder<'a>) -> EventBuilder<'a>) -> EventError {
    let builder = EventBuilder::new("s", "t").id(EventId::from_bytes([1; 16]));
    let mut out = Vec::new();
    let error = change(builder).encode_into(&mut out).unwrap_err();
    assert!(out.is_empty(), "an error leaves nothing behind");
    error
}

#[test]
fn limits_are_checked_when_an_event_is_built() {
    let long: &'static str = String::leak("x".repeat(256));
    let tags: &'static [String] =
        Vec::leak((0..=TAGS_MAX).map(|index| index.to_string()).collect());
    let limit = |error| match error {
        EventError::LimitExceeded { max, .. } => max,
        other => panic!("{other}"),
    };
    assert_eq!(
        limit(refused(|event| event.content_type(long))),
        CONTENT_TYPE_BYTES_MAX
    );
    assert_eq!(limit(refused(|event| event.tag(long))), TAG_BYTES_MAX);
    let many = |event| {
        tags.iter()
            .fold(event, |event: EventBuilder<'static>, tag| event.tag(tag))
    };
    let mut out = Vec::new();
    let event = EventBuilder::new("s", "t").id(EventId::from_bytes([1; 16]));
    assert_eq!(
        limit(many(event).encode_into(&mut out).unwrap_err()),
        TAGS_MAX
    );
    let value: &'static str = String::leak("x".repeat(METADATA_BYTES_MAX - 3));
    assert_eq!(
        limit(refused(|event| event.metadata("k", value))),
        METADATA_BYTES_MAX
    );
    let payload: &'static [u8] = Vec::leak(vec![0; EVENT_PAYLOAD_BYTES_MAX + 1]);
    assert_eq!(
        limit(refused(|event| event.payload(payload))),
        EVENT_PAYLOAD_BYTES_MAX
    );
    assert_eq!(
        refused(|event| event.id(EventId::default())),
        EventError::Empty { field: "event id" }
    );
    let error = EventBuilder::new(long, "t")
        .id(EventId::from_bytes([1; 16]))
        .check();
    assert_eq!(limit(error.unwrap_err()), STREAM_NAME_BYTES_MAX);
}

#[test]
fn bad_names_and_duplicates_are_refused_by_builder_and_parser() {
    for name in ["a\nb", "\u{7f}", "a\u{85}"] {
        let error = EventBuilder::new(name, "t")
            .id(EventId::from_bytes([1; 16]))
            .check();
        assert!(matches!(
            error,
            Err(EventError::ControlCharacter {
                field: "stream",
                ..
            })
        ));
    }
    assert!(matches!(
        refused(|event| event.tag("a").tag("a")),
        EventError::Duplicate { .. }
    ));
    let error = refused(|event| event.metadata("a", "1").metadata("a", "2"));
    assert!(matches!(error, EventError::Duplicate { .. }));

    let parsed = |from: &[u8], to: &[u8]| {
        let mut bytes = valid();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        EventRef::parse(&bytes).unwrap_err()
    };
    let duplicate = EventError::Duplicate {
        field: "tag",
        name: "a".to_owned(),
    };
    assert_eq!(parsed(b"\x01a\x01b", b"\x01a\x01a"), duplicate);
    assert_eq!(
        parsed(b"\x01a\x01b", b"\x01a\x02b"),
        EventError::Section { field: "tags" }
    );
    assert_eq!(
        parsed(b"account-1", b"account-\xff"),
        EventError::NotUtf8 { field: "stream" }
    );
    assert!(matches!(
        parsed(b"account-1", b"account-\n"),
        EventError::ControlCharacter { .. }
    ));
    assert_eq!(
        parsed(b"\x0ccausation", b"\x0ecausation"),
        EventError::Section { field: "metadata" }
    );
    let mut bytes = valid();
    bytes[27] = 1;
    assert_eq!(
        EventRef::parse(&bytes),
        Err(EventError::Reserved { value: 1 })
    );
}
