//! Every frame survives its own codec, and no input whatsoever makes a decoder panic.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{CURSOR_NAME_BYTES_MAX, ErrorCode, FILTER_MATCHES_MAX, FILTER_NAMES_MAX};

fn name() -> impl Strategy<Value = Text> {
    "[a-zé$/-]{1,20}".prop_map(|text| Text::new(&text).unwrap())
}

fn matches() -> impl Strategy<Value = Vec<EventMatch>> {
    let one = (vec(name(), 0..3), vec(name(), 0..3));
    let one = one.prop_filter("an alternative asks for something", |(types, tags)| {
        !types.is_empty() || !tags.is_empty()
    });
    vec(
        one.prop_map(|(types, tags)| EventMatch { types, tags }),
        0..3,
    )
}

fn filter() -> impl Strategy<Value = Filter> {
    let streams = prop_oneof![
        Just(StreamFilter::All),
        name().prop_map(StreamFilter::One),
        name().prop_map(StreamFilter::Prefix),
        Just(StreamFilter::Prefix(Text::default())),
        Just(StreamFilter::AllWithSystem),
    ];
    (streams, matches()).prop_map(|(streams, matches)| Filter { streams, matches })
}

fn expected() -> impl Strategy<Value = ExpectedRevision> {
    prop_oneof![
        Just(ExpectedRevision::Any),
        Just(ExpectedRevision::NoStream),
        Just(ExpectedRevision::StreamExists),
        any::<u64>().prop_map(ExpectedRevision::Exact),
    ]
}

fn head() -> impl Strategy<Value = AppendHead> {
    let expectations =
        (name(), expected()).prop_map(|(stream, expected)| StreamExpectation { stream, expected });
    let cursor =
        (name(), any::<u64>()).prop_map(|(name, position)| CursorUpdate { name, position });
    let condition =
        (any::<u64>(), matches()).prop_map(|(after_sequence, matches)| AppendCondition {
            after_sequence,
            matches,
        });
    let parts = (
        any::<u32>(),
        vec(expectations, 0..4),
        proptest::option::of(cursor),
        proptest::option::of(condition),
    );
    parts.prop_map(|(partition, expectations, cursor, condition)| AppendHead {
        partition,
        expectations,
        cursor,
        condition,
    })
}

fn events() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    vec((any::<u64>(), vec(any::<u8>(), 0..40)), 0..5)
}

fn scope_and_start() -> impl Strategy<Value = (ReadScope, ReadStart)> {
    prop_oneof![
        Just((ReadScope::Partition, ReadStart::Edge)),
        any::<u64>().prop_map(|n| (ReadScope::Partition, ReadStart::Sequence(n))),
        any::<u64>().prop_map(|n| (ReadScope::Partition, ReadStart::Timestamp(n))),
        name().prop_map(|stream| (ReadScope::Stream(stream), ReadStart::Edge)),
        (name(), any::<u64>())
            .prop_map(|(stream, n)| (ReadScope::Stream(stream), ReadStart::Revision(n))),
    ]
}

fn read() -> impl Strategy<Value = Read> {
    let numbers = (
        any::<u32>(),
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
    );
    (scope_and_start(), any::<bool>(), numbers, filter()).prop_map(
        |((scope, start), backward, numbers, filter)| {
            let (partition, max_events, until_sequence, credit_bytes, page_bytes) = numbers;
            let direction = if backward {
                Direction::Backward
            } else {
                Direction::Forward
            };
            Read {
                scope,
                partition,
                direction,
                start,
                max_events,
                until_sequence,
                credit_bytes,
                page_bytes,
                filter,
            }
        },
    )
}

fn subscribe() -> impl Strategy<Value = Subscribe> {
    let start = prop_oneof![
        Just(SubscribeStart::First),
        any::<u64>().prop_map(SubscribeStart::Sequence),
        any::<u64>().prop_map(SubscribeStart::Timestamp),
        Just(SubscribeStart::Head),
        name().prop_map(SubscribeStart::Cursor),
    ];
    let heartbeat = prop_oneof![Just(0), HEARTBEAT_MS_MIN..=HEARTBEAT_MS_MAX];
    (any::<u32>(), start, heartbeat, any::<u32>(), filter()).prop_map(
        |(partition, start, heartbeat_ms, credit_bytes, filter)| Subscribe {
            partition,
            start,
            heartbeat_ms,
            credit_bytes,
            filter,
        },
    )
}

fn batch() -> impl Strategy<Value = AppendedBatch> {
    let durability = prop_oneof![
        Just(Durability::FlushEachGroup),
        Just(Durability::FlushInterval),
        Just(Durability::Os),
    ];
    (
        any::<[u64; 3]>(),
        vec(any::<u64>(), 0..4),
        any::<bool>(),
        durability,
    )
        .prop_map(
            |(
                [first_sequence, last_sequence, timestamp_ns],
                last_revisions,
                already,
                durability,
            )| {
                AppendedBatch {
                    first_sequence,
                    last_sequence,
                    timestamp_ns,
                    last_revisions,
                    already_appended: already,
                    durability,
                }
            },
        )
}

/// The one frame in `out`, and that nothing else is in it.
fn only(out: &BytesMut) -> RawFrame {
    let mut input = out.clone();
    assert_eq!(frame_bytes_wanted(out).unwrap(), out.len());
    let raw = split_frame(&mut input).unwrap().unwrap();
    assert!(input.is_empty());
    raw
}

/// Request id, head, and checksum and bytes of each event.
type Entry = (u32, AppendHead, Vec<(u64, Vec<u8>)>);

fn append_frame(entries: &[Entry]) -> BytesMut {
    let mut out = BytesMut::new();
    let mut encoder = AppendFrameEncoder::begin(&mut out);
    for (id, head, events) in entries {
        let checksums: Vec<u64> = events.iter().map(|(checksum, _)| *checksum).collect();
        let lengths: Vec<u32> = events
            .iter()
            .map(|(_, event)| u32::try_from(event.len()).unwrap())
            .collect();
        let data: Vec<u8> = events.iter().flat_map(|(_, event)| event.clone()).collect();
        let mut entry = BytesMut::new();
        encode_append_entry(&mut entry, 0, head, &checksums, &lengths, &data).unwrap();
        encoder.push(&mut out, *id, &entry);
    }
    encoder.finish(&mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn append_frames_survive(entries in vec((any::<u32>(), head(), events()), 0..4)) {
        let raw = only(&append_frame(&entries));
        let ClientFrame::Append(frame) = ClientFrame::decode(raw).unwrap() else { panic!() };
        prop_assert_eq!(frame.len(), entries.len());
        for (decoded, (id, head, events)) in frame.into_entries().zip(&entries) {
            let decoded = decoded.unwrap();
            prop_assert_eq!(decoded.request_id, *id);
            prop_assert_eq!(&decoded.head, head);
            let rows: Vec<_> =
                decoded.events.iter().map(|(sum, event)| (sum, event.to_vec())).collect();
            prop_assert_eq!(&rows, events);
        }
    }

    #[test]
    fn reads_survive(read in read(), id: u32) {
        let mut out = BytesMut::new();
        read.encode(&mut out, id).unwrap();
        let raw = only(&out);
        prop_assert_eq!(raw.request_id, id);
        prop_assert_eq!(ClientFrame::decode(raw).unwrap(), ClientFrame::Read(read));
    }

    #[test]
    fn subscriptions_survive(subscribe in subscribe(), id: u32) {
        let mut out = BytesMut::new();
        subscribe.encode(&mut out, id).unwrap();
        prop_assert_eq!(
            ClientFrame::decode(only(&out)).unwrap(),
            ClientFrame::Subscribe(subscribe)
        );
    }

    #[test]
    fn append_replies_survive(results in vec((any::<u32>(), proptest::option::of(batch())), 0..5)) {
        let results: Vec<(u32, AppendResult)> = results
            .into_iter()
            .map(|(id, batch)| (id, batch.ok_or_else(|| ApiError::condition_failed(7))))
            .collect();
        let mut out = BytesMut::new();
        let mut encoder = AppendReplyEncoder::begin(&mut out);
        for (id, result) in &results {
            match result {
                Ok(batch) => encoder.push_appended(&mut out, *id, batch),
                Err(error) => encoder.push_error(&mut out, *id, error),
            }
        }
        encoder.finish(&mut out);
        prop_assert_eq!(
            ServerFrame::decode(only(&out)).unwrap(),
            ServerFrame::AppendReply(results)
        );
    }

    #[test]
    fn pages_survive(
        runs in vec((1..u64::MAX / 2, any::<u64>(), vec(any::<(u64, u64)>(), 1..4)), 0..4),
        position: u64,
    ) {
        let mut out = BytesMut::new();
        let mut encoder = PageEncoder::begin(&mut out, 9);
        let mut bytes = FRAME_HEADER_BYTES + 24;
        for (first, time, rows) in &runs {
            let rows: Vec<(u64, u64, &[u8])> =
                rows.iter().map(|(sum, revision)| (*sum, *revision, &b"event"[..])).collect();
            encoder.push_rows(&mut out, *first, *time, &rows);
            bytes += run_bytes(rows.len(), rows.len() * 5);
            prop_assert_eq!(encoder.frame_bytes(&out), bytes);
        }
        let position = Position { position, head_sequence: 3 };
        let frame_bytes = encoder.finish(&mut out, position);
        let ServerFrame::Page(page) = ServerFrame::decode(only(&out)).unwrap() else { panic!() };
        prop_assert_eq!(page.position, position);
        prop_assert_eq!(page.credit_bytes() as usize, frame_bytes);
        for (run, (first, time, rows)) in page.runs().iter().zip(&runs) {
            for (index, (row, (checksum, revision))) in run.events().zip(rows).enumerate() {
                prop_assert_eq!(row.sequence, first + index as u64);
                prop_assert_eq!(row.timestamp_ns, *time);
                prop_assert_eq!((row.checksum, row.revision), (*checksum, *revision));
                prop_assert_eq!(&row.event[..], b"event");
            }
        }
        prop_assert_eq!(page.runs().len(), runs.len());
    }

    #[test]
    fn a_page_in_pieces_is_the_same_frame(
        sizes in vec((0usize..9000, any::<bool>()), 0..6),
        position: u64,
    ) {
        let position = Position { position, head_sequence: 5 };
        let mut whole = BytesMut::new();
        let mut encoder = PageEncoder::begin(&mut whole, 3);
        let mut pieces = PagePieces::begin(3);
        for (at, (size, share)) in (1u64..).zip(&sizes) {
            let event = vec![7u8; *size];
            encoder.push_rows(&mut whole, at, 11, &[(at, 13, &event)]);
            let body = &whole[whole.len() - 20 - size..];
            pieces.push_run(at, 11, 1, &bytes::Bytes::copy_from_slice(body), *share);
            prop_assert_eq!(pieces.frame_bytes(), encoder.frame_bytes(&whole));
        }
        prop_assert_eq!(pieces.run_count(), encoder.run_count());
        let frame_bytes = encoder.finish(&mut whole, position);
        prop_assert_eq!(pieces.frame_bytes(), frame_bytes);
        let pieces = pieces.finish(position);
        prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        prop_assert_eq!(pieces.concat(), &whole[..]);
    }

    #[test]
    fn any_bytes_decode_to_a_value_or_an_error(
        kind: u8,
        payload in vec(any::<u8>(), 0..200),
        trailing in vec(any::<u8>(), 0..30),
    ) {
        let mut input = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        input.extend([kind, 0, 0, 0, 1, 0, 0, 0]);
        input.extend(&payload);
        input.extend(&trailing);
        prop_assert!(fuzz_decode(&input) >= 1);
        fuzz_decode(&payload);
    }
}

/// One frame of each kind.
fn samples() -> Vec<BytesMut> {
    let text = |text: &str| Text::new(text).unwrap();
    let one = EventMatch {
        types: vec![text("t")],
        tags: vec![text("g")],
    };
    let filter = Filter {
        streams: StreamFilter::Prefix(text("or")),
        matches: vec![one.clone()],
    };
    let head = AppendHead {
        partition: 2,
        expectations: vec![StreamExpectation {
            stream: text("order"),
            expected: ExpectedRevision::Exact(4),
        }],
        cursor: Some(CursorUpdate {
            name: text("c"),
            position: 5,
        }),
        condition: Some(AppendCondition {
            after_sequence: 6,
            matches: vec![one],
        }),
    };
    let event = (3, b"event".to_vec());
    let mut all = vec![append_frame(&[(7, head, vec![event.clone(), event])])];
    let mut frame = |encode: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        encode(&mut out);
        all.push(out);
    };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        token: Bytes::from_static(b"token"),
    };
    frame(&|out| hello.encode(out).unwrap());
    frame(&|out| welcome().encode(out));
    frame(&|out| {
        let read = Read {
            scope: ReadScope::Stream(text("order")),
            partition: 1,
            direction: Direction::Backward,
            start: ReadStart::Revision(2),
            max_events: 3,
            until_sequence: 4,
            credit_bytes: 5,
            page_bytes: 6,
            filter: filter.clone(),
        };
        read.encode(out, 1).unwrap();
    });
    frame(&|out| {
        let subscribe = Subscribe {
            partition: 1,
            start: SubscribeStart::Cursor(text("c")),
            heartbeat_ms: 100,
            credit_bytes: 2,
            filter: filter.clone(),
        };
        subscribe.encode(out, 1).unwrap();
    });
    let at = Position {
        position: 1,
        head_sequence: 2,
    };
    let cursor = CursorState {
        position: 1,
        sequence: 2,
        timestamp_ns: 3,
    };
    frame(&|out| encode_credit(out, 1, 2));
    frame(&|out| encode_cancel(out, 1));
    frame(&|out| encode_ping(out, 1, 2));
    frame(&|out| encode_pong(out, 1, 2));
    frame(&|out| encode_stream_head(out, 1, 0, &text("s")));
    frame(&|out| encode_cursor_get(out, 1, 0, &text("c")));
    frame(&|out| encode_end(out, 1, at));
    frame(&|out| encode_caught_up(out, 1, at));
    frame(&|out| encode_heartbeat(out, 1, at));
    frame(&|out| {
        encode_stream_head_reply(
            out,
            1,
            StreamHead {
                partition: 0,
                last: Some((1, 2)),
            },
        );
    });
    frame(&|out| encode_cursor_reply(out, 1, Some(cursor)));
    frame(&|out| encode_error(out, 1, &ApiError::new(ErrorCode::Internal, "oh")));
    frame(&|out| {
        let mut encoder = AppendReplyEncoder::begin(out);
        encoder.push_appended(out, 1, &AppendedBatch::default());
        encoder.push_error(out, 2, &ApiError::sequence_trimmed(1, 2));
        encoder.finish(out);
    });
    frame(&|out| {
        let mut encoder = PageEncoder::begin(out, 1);
        encoder.push_rows(out, 1, 2, &[(3, 4, b"event"), (5, 6, b"")]);
        encoder.finish(out, at);
    });
    all
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        roles: ROLE_INGEST | ROLE_QUERY,
        partition_count: 4,
        database_id: [9; 16],
        durability: Durability::FlushInterval,
        loss_window_ms: 20,
        limits: Limits {
            frame_bytes_max: 1,
            batch_bytes_max: 2,
            batch_events_max: 3,
            event_payload_bytes_max: 4,
            metadata_bytes_max: 5,
            in_flight_bytes_max: 6,
        },
        server_version: Text::new("1.2.3").unwrap(),
    }
}

fn decodes(raw: RawFrame) -> bool {
    if raw.kind & 0x80 != 0 {
        ServerFrame::decode(raw).is_ok()
    } else {
        ClientFrame::decode(raw).is_ok()
    }
}

#[test]
fn every_kind_is_decoded_and_refused_when_cut_short_or_followed_by_more() {
    for sample in samples() {
        let raw = only(&sample);
        assert!(decodes(raw.clone()), "{:#x}", raw.kind);
        for length in 0..raw.payload.len() {
            let cut = RawFrame {
                payload: raw.payload.slice(..length),
                ..raw.clone()
            };
            // An error's protobuf bytes may end between two fields.
            if raw.kind != Kind::Error as u8 {
                assert!(!decodes(cut), "{:#x} cut to {length}", raw.kind);
            }
        }
        // Hello is lenient, so that a later version of it can be longer.
        if ![Kind::Hello as u8, Kind::Error as u8].contains(&raw.kind) {
            let mut longer = raw.payload.to_vec();
            longer.push(0);
            assert!(
                !decodes(RawFrame {
                    payload: longer.into(),
                    ..raw.clone()
                }),
                "{:#x}",
                raw.kind
            );
        }
    }
}

#[test]
fn no_flipped_bit_makes_a_decoder_panic() {
    for sample in samples() {
        for bit in 0..sample.len() * 8 {
            let mut flipped = sample.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fuzz_decode(&flipped);
        }
    }
}

#[test]
fn kinds_are_what_the_documentation_says() {
    let kinds: Vec<u8> = samples().iter().map(|sample| sample[4]).collect();
    let expected = [
        0x02, 0x01, 0x81, 0x03, 0x04, 0x05, 0x06, 0x07, 0x87, 0x08, 0x09, 0x84, 0x85, 0x86, 0x88,
        0x89, 0x8f, 0x82, 0x83,
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn unknown_kinds_are_skipped_or_refused_by_their_bit() {
    let raw = |kind| RawFrame {
        kind,
        request_id: 1,
        payload: Bytes::from_static(b"new"),
    };
    assert_eq!(ClientFrame::decode(raw(0x41)), Ok(ClientFrame::Skipped));
    assert_eq!(ServerFrame::decode(raw(0xc1)), Ok(ServerFrame::Skipped));
    let unknown = |kind| DecodeError::UnknownKind { kind };
    assert_eq!(ClientFrame::decode(raw(0x0a)), Err(unknown(0x0a)));
    assert_eq!(ServerFrame::decode(raw(0x8a)), Err(unknown(0x8a)));
}

#[test]
fn a_header_that_is_not_legal_is_refused_before_its_payload_comes() {
    let mut long = BytesMut::from(&[0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0][..]);
    assert!(matches!(
        split_frame(&mut long),
        Err(DecodeError::FrameTooLarge { .. })
    ));
    assert!(frame_bytes_wanted(&long).is_err());
    let mut flagged = BytesMut::from(&[0, 0, 0, 0, 6, 1, 0, 0, 0, 0, 0, 0][..]);
    assert_eq!(
        split_frame(&mut flagged),
        Err(DecodeError::Illegal { field: "flags" })
    );
    let mut short = BytesMut::from(&[0; 11][..]);
    assert_eq!(split_frame(&mut short), Ok(None));
}

#[test]
fn a_bad_entry_does_not_harm_its_neighbours() {
    let event = |n| vec![(n, vec![1, 2, 3])];
    let head = AppendHead::default();
    let mut out = append_frame(&[
        (1, head.clone(), event(1)),
        (2, head.clone(), event(2)),
        (3, head, event(3)),
    ]);
    let entry_bytes = (out.len() - FRAME_HEADER_BYTES - 4) / 3;
    // The reserved byte of the second entry.
    out[FRAME_HEADER_BYTES + 4 + entry_bytes + 15] = 1;
    let ClientFrame::Append(frame) = ClientFrame::decode(only(&out)).unwrap() else {
        panic!()
    };
    let results: Vec<_> = frame
        .into_entries()
        .map(|entry| entry.map(|e| e.request_id))
        .collect();
    let refused = (2, DecodeError::Illegal { field: "reserved" });
    assert_eq!(results, [Ok(1), Err(refused), Ok(3)]);
}

#[test]
fn versions_are_negotiated_to_the_highest_that_both_know() {
    let hello = |version_min, version_max| Hello {
        version_min,
        version_max,
        token: Bytes::new(),
    };
    assert_eq!(hello(1, 1).negotiate(), Some(1));
    assert_eq!(hello(1, 9).negotiate(), Some(1));
    assert_eq!(hello(2, 9).negotiate(), None);
}

#[test]
fn limits_are_kept_by_encoders_and_decoders() {
    let name = Text::new("n").unwrap();
    let one = EventMatch {
        types: vec![name.clone()],
        tags: vec![],
    };
    let wide = EventMatch {
        types: vec![name.clone(); FILTER_NAMES_MAX + 1],
        tags: vec![],
    };
    let subscribe = |matches| Subscribe {
        partition: 0,
        start: SubscribeStart::First,
        heartbeat_ms: 0,
        credit_bytes: 0,
        filter: Filter {
            streams: StreamFilter::All,
            matches,
        },
    };
    let mut out = BytesMut::new();
    subscribe(vec![one.clone(); FILTER_MATCHES_MAX])
        .encode(&mut out, 1)
        .unwrap();
    assert!(decodes(only(&out)));
    let mut none = BytesMut::new();
    assert!(
        subscribe(vec![one; FILTER_MATCHES_MAX + 1])
            .encode(&mut none, 1)
            .is_err()
    );
    assert!(subscribe(vec![wide]).encode(&mut none, 1).is_err());
    assert!(none.is_empty());

    let long = Text::new(&"c".repeat(CURSOR_NAME_BYTES_MAX + 1)).unwrap();
    let cursor = Some(CursorUpdate {
        name: long,
        position: 1,
    });
    let head = AppendHead {
        cursor,
        ..AppendHead::default()
    };
    assert!(encode_append_entry(&mut none, 1, &head, &[], &[], &[]).is_err());
    assert!(Text::new(&"x".repeat(256)).is_err());
}

#[test]
fn a_filter_asks_for_stream_any_type_and_all_tags() {
    let mut bytes = Vec::new();
    truthdb_event::EventBuilder::new("order-1", "placed")
        .id(truthdb_event::EventId::from_bytes([1; 16]))
        .tag("red")
        .tag("big")
        .encode_into(&mut bytes)
        .unwrap();
    let event = truthdb_event::EventRef::parse(&bytes).unwrap();
    let texts =
        |names: &[&str]| -> Vec<Text> { names.iter().map(|n| Text::new(n).unwrap()).collect() };
    let accepts = |types: &[&str], tags: &[&str]| {
        EventMatch {
            types: texts(types),
            tags: texts(tags),
        }
        .accepts(&event)
    };
    assert!(accepts(&["paid", "placed"], &["big", "red"]));
    assert!(accepts(&[], &["big"]) && accepts(&["placed"], &[]));
    assert!(!accepts(&["paid"], &[]) && !accepts(&[], &["big", "blue"]));
    let of = |streams| {
        Filter {
            streams,
            matches: vec![],
        }
        .accepts(&event)
    };
    let text = |text: &str| Text::new(text).unwrap();
    assert!(of(StreamFilter::All) && of(StreamFilter::Prefix(text("order-"))));
    assert!(of(StreamFilter::One(text("order-1"))) && !of(StreamFilter::One(text("order-12"))));
    assert!(!of(StreamFilter::Prefix(text("orders"))));
}

#[test]
fn a_token_does_not_reach_a_log() {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        token: Bytes::from_static(b"secret"),
    };
    assert!(!format!("{hello:?}").contains("secret"));
}
