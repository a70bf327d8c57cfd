//! A server for tests: an in-memory log of one partition behind the real frame codec.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use truthdb_api::native::{
    self, AppendEntry, AppendReplyEncoder, AppendedBatch, ClientFrame, Direction, Durability,
    Limits, PageEncoder, Position, Read, ReadStart, Subscribe, SubscribeStart, Text, Welcome,
};
use truthdb_api::{ApiError, ErrorCode};
use truthdb_client::EventRef;

/// What the server does with the next Append frame.
#[derive(Clone, Debug)]
pub(crate) enum OnAppend {
    /// Appends and answers.
    Answer,
    /// Appends and closes the connection without an answer.
    AppendThenClose,
    /// Closes the connection without appending.
    Close,
    /// Answers every entry with this error.
    Refuse(ApiError),
    /// Neither appends nor answers.
    Swallow,
}

/// What the server has and did.
pub(crate) struct Server {
    pub(crate) database_id: [u8; 16],
    pub(crate) token: String,
    /// Canonical bytes of the events, in order of sequence.
    pub(crate) log: Vec<Vec<u8>>,
    /// What to do with the next Append frames; then [`OnAppend::Answer`].
    pub(crate) script: VecDeque<OnAppend>,
    /// How many entries each Append frame had.
    pub(crate) frames: Vec<usize>,
    pub(crate) connections: usize,
    /// Close a read or subscription's connection after so many events, each time.
    pub(crate) events_before_close: VecDeque<usize>,
    pub(crate) subscribes: Vec<Subscribe>,
    pub(crate) reads: Vec<Read>,
    /// Credit frames that came.
    pub(crate) credits: usize,
    /// Send events with a bit flipped.
    pub(crate) damage: bool,
}

pub(crate) type Shared = Arc<Mutex<Server>>;

pub(crate) fn server() -> Shared {
    Arc::new(Mutex::new(Server {
        database_id: [7; 16],
        token: String::new(),
        log: Vec::new(),
        script: VecDeque::new(),
        frames: Vec::new(),
        connections: 0,
        events_before_close: VecDeque::new(),
        subscribes: Vec::new(),
        reads: Vec::new(),
        credits: 0,
        damage: false,
    }))
}

/// Listens on the loopback; returns the address.
pub(crate) async fn listen(server: &Shared, tls: Option<TlsAcceptor>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = Arc::clone(server);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let (server, tls) = (Arc::clone(&server), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve(server, socket).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(socket).await {
                            serve(server, stream).await;
                        }
                    }
                }
            });
        }
    });
    addr
}

fn welcome(server: &Server) -> Welcome {
    Welcome {
        version: native::PROTOCOL_VERSION,
        roles: native::ROLE_INGEST | native::ROLE_QUERY,
        partition_count: 1,
        database_id: server.database_id,
        durability: Durability::FlushEachGroup,
        loss_window_ms: 0,
        limits: Limits {
            frame_bytes_max: 16 << 20,
            batch_bytes_max: 8 << 20,
            batch_events_max: 10_000,
            event_payload_bytes_max: 4 << 20,
            metadata_bytes_max: 16 << 10,
            in_flight_bytes_max: 64 << 20,
        },
        server_version: Text::new("0.0.0-fake").unwrap(),
    }
}

/// A read or subscription under way on a connection.
struct Flow {
    request_id: u32,
    next: u64,
    backward: bool,
    live: bool,
    left: u64,
    credit: u64,
    caught_up: bool,
    events_before_close: Option<usize>,
}

struct Session {
    server: Shared,
    out: BytesMut,
    flows: Vec<Flow>,
    close: bool,
}

async fn serve(server: Shared, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    server.lock().connections += 1;
    let mut session = Session {
        server,
        out: BytesMut::new(),
        flows: Vec::new(),
        close: false,
    };
    let mut input = BytesMut::new();
    loop {
        while let Some(raw) = native::split_frame(&mut input).unwrap() {
            let id = raw.request_id;
            session.handle(id, ClientFrame::decode(raw).unwrap());
        }
        if !session.close {
            session.pump();
        }
        if stream.write_all(&session.out).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        session.out.clear();
        if session.close {
            let _ = stream.shutdown().await;
            return;
        }
        if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}

impl Session {
    fn handle(&mut self, id: u32, frame: ClientFrame) {
        let server = Arc::clone(&self.server);
        let mut server = server.lock();
        match frame {
            ClientFrame::Hello(hello) if hello.token[..] == *server.token.as_bytes() => {
                welcome(&server).encode(&mut self.out);
            }
            ClientFrame::Hello(_) => {
                let error = ApiError::new(ErrorCode::Unauthenticated, "unknown token");
                native::encode_error(&mut self.out, 0, &error);
                self.close = true;
            }
            ClientFrame::Append(frame) => {
                server.frames.push(frame.len());
                let entries: Vec<AppendEntry> = frame.into_entries().map(Result::unwrap).collect();
                self.append(&mut server, &entries);
            }
            ClientFrame::Subscribe(subscribe) => self.subscribe(&mut server, id, subscribe),
            ClientFrame::Read(read) => {
                let head = server.log.len() as u64;
                let backward = read.direction == Direction::Backward;
                let next = match read.start {
                    ReadStart::Edge => {
                        if backward {
                            head
                        } else {
                            1
                        }
                    }
                    ReadStart::Sequence(n) => n,
                    ReadStart::Revision(n) => n + 1,
                    ReadStart::Timestamp(_) => 1,
                };
                self.flows.push(Flow {
                    request_id: id,
                    next,
                    backward,
                    live: false,
                    left: if read.max_events == 0 {
                        u64::MAX
                    } else {
                        read.max_events
                    },
                    credit: u64::from(read.credit_bytes),
                    caught_up: true,
                    events_before_close: server.events_before_close.pop_front(),
                });
                server.reads.push(read);
            }
            ClientFrame::Credit { bytes } => {
                server.credits += 1;
                for flow in self.flows.iter_mut().filter(|flow| flow.request_id == id) {
                    flow.credit += u64::from(bytes);
                }
            }
            ClientFrame::Cancel => self.flows.retain(|flow| flow.request_id != id),
            ClientFrame::Ping { nonce } => native::encode_pong(&mut self.out, id, nonce),
            ClientFrame::StreamHead { partition, .. } => {
                let last = (server.log.len() as u64).checked_sub(1).map(|n| (n, n + 1));
                let head = native::StreamHead { partition, last };
                native::encode_stream_head_reply(&mut self.out, id, head);
            }
            ClientFrame::CursorGet { .. } => native::encode_cursor_reply(&mut self.out, id, None),
            ClientFrame::Skipped => {}
        }
    }

    fn append(&mut self, server: &mut Server, entries: &[AppendEntry]) {
        let action = server.script.pop_front().unwrap_or(OnAppend::Answer);
        if matches!(action, OnAppend::Close | OnAppend::AppendThenClose) {
            self.close = true;
        }
        if matches!(action, OnAppend::Close | OnAppend::Swallow) {
            return;
        }
        let mut reply = BytesMut::new();
        let mut encoder = AppendReplyEncoder::begin(&mut reply);
        for entry in entries {
            match &action {
                OnAppend::Refuse(error) => {
                    encoder.push_error(&mut reply, entry.request_id, error);
                }
                _ => {
                    let result = append_entry(server, entry);
                    encoder.push_appended(&mut reply, entry.request_id, &result);
                }
            }
        }
        encoder.finish(&mut reply);
        if !matches!(action, OnAppend::AppendThenClose) {
            self.out.extend_from_slice(&reply);
        }
    }

    fn subscribe(&mut self, server: &mut Server, id: u32, subscribe: Subscribe) {
        let head_sequence = server.log.len() as u64;
        let next = match subscribe.start {
            SubscribeStart::Sequence(n) => n,
            SubscribeStart::Head => head_sequence + 1,
            _ => 1,
        };
        let at = Position {
            position: next - 1,
            head_sequence,
        };
        native::encode_heartbeat(&mut self.out, id, at);
        self.flows.push(Flow {
            request_id: id,
            next,
            backward: false,
            live: true,
            left: u64::MAX,
            credit: u64::from(subscribe.credit_bytes),
            caught_up: false,
            events_before_close: server.events_before_close.pop_front(),
        });
        server.subscribes.push(subscribe);
    }

    /// Sends pages of one event each, as far as credit goes.
    fn pump(&mut self) {
        let server = Arc::clone(&self.server);
        let server = server.lock();
        let head_sequence = server.log.len() as u64;
        for flow in &mut self.flows {
            while flow.left > 0 && (1..=head_sequence).contains(&flow.next) {
                if flow.events_before_close == Some(0) {
                    self.close = true;
                    return;
                }
                let mut event = server.log[usize::try_from(flow.next).unwrap() - 1].clone();
                let mut page = BytesMut::new();
                let mut encoder = PageEncoder::begin(&mut page, flow.request_id);
                let checksum = truthdb_event::event_checksum(&event);
                if server.damage
                    && let Some(last) = event.last_mut()
                {
                    *last ^= 1;
                }
                let row = (checksum, flow.next - 1, &event[..]);
                encoder.push_rows(&mut page, flow.next, 1_000 + flow.next, &[row]);
                let position = Position {
                    position: flow.next,
                    head_sequence,
                };
                let bytes = encoder.finish(&mut page, position) as u64;
                if bytes > flow.credit {
                    break;
                }
                flow.credit -= bytes;
                self.out.extend_from_slice(&page);
                flow.next = if flow.backward {
                    flow.next - 1
                } else {
                    flow.next + 1
                };
                flow.left -= 1;
                flow.events_before_close = flow.events_before_close.map(|n| n - 1);
            }
            let finished = flow.left == 0 || !(1..=head_sequence).contains(&flow.next);
            let at = Position {
                position: flow.next.saturating_sub(1),
                head_sequence,
            };
            if finished && flow.live && !flow.caught_up {
                flow.caught_up = true;
                native::encode_caught_up(&mut self.out, flow.request_id, at);
            } else if finished && !flow.live {
                native::encode_end(&mut self.out, flow.request_id, at);
            }
        }
        self.flows.retain(|flow| {
            flow.live || (flow.left > 0 && (1..=head_sequence).contains(&flow.next))
        });
    }
}

fn append_entry(server: &mut Server, entry: &AppendEntry) -> AppendedBatch {
    let id_of = |bytes: &[u8]| EventRef::parse(bytes).unwrap().id();
    let (_, first) = entry.events.iter().next().unwrap();
    let known = server
        .log
        .iter()
        .position(|event| id_of(event) == id_of(first));
    let first_sequence = known.unwrap_or(server.log.len()) as u64 + 1;
    if known.is_none() {
        for (checksum, event) in entry.events.iter() {
            assert_eq!(checksum, truthdb_event::event_checksum(event));
            server.log.push(event.to_vec());
        }
    }
    let last_sequence = first_sequence + entry.events.len() as u64 - 1;
    AppendedBatch {
        first_sequence,
        last_sequence,
        timestamp_ns: 1_000 + first_sequence,
        last_revisions: vec![last_sequence - 1],
        already_appended: known.is_some(),
        durability: Durability::FlushEachGroup,
    }
}
