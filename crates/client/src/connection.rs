//! One connection: who writes, who reads, and what is under way.
//!
//! Appends of many tasks are put into one open Append frame under a lock. A caller that is alone
//! writes the frame itself, without a change of thread; otherwise the writer task writes all that
//! has gathered. It first lets every task that is ready run, so that the tasks that one reply woke
//! together send their next appends together.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use truthdb_api::native::{
    self, AppendFrameEncoder, AppendResult, EncodeError, FRAME_HEADER_BYTES, ServerFrame, Welcome,
};
use truthdb_api::{ApiError, ErrorCode, Outcome};

use crate::{ClientConfig, ClientError, tls};

/// Bytes to read at once, unless larger frames come.
const READ_BYTES: usize = 256 * 1024;

/// Bytes to read at once at most, when nothing is known of the next frame: pages follow pages.
const READ_BYTES_MAX: usize = FRAME_HEADER_BYTES + native::PAGE_BYTES_MAX + READ_BYTES;

/// Buffers above this are not kept for the next write.
const SPARE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of credit frames and the like are few; the in-flight bound of appends bounds the rest.
const OUT_BYTES_START: usize = 64 * 1024;

/// An answered append, with the permit that its bytes held.
pub(crate) type Answer = (AppendResult, OwnedSemaphorePermit);

/// What a read or subscription gets: its frames, or why there will be no more.
pub(crate) type StreamItem = Result<ServerFrame, ApiError>;

enum Request {
    Append {
        done: oneshot::Sender<Answer>,
        permit: OwnedSemaphorePermit,
    },
    Unary(oneshot::Sender<Result<ServerFrame, ApiError>>),
    Stream(mpsc::UnboundedSender<StreamItem>),
}

struct State {
    out: BytesMut,
    frame: Option<AppendFrameEncoder>,
    /// The writer task holds bytes that must go out before `out`.
    writing: bool,
    closed: Option<ApiError>,
    requests: HashMap<u32, Request>,
    appends_under_way: usize,
    /// The last reply answered one append only: the caller is likely to be alone.
    alone: bool,
    next_id: u32,
}

impl State {
    fn check_open(&self) -> Result<(), ApiError> {
        match &self.closed {
            // It was closed before this request was written.
            Some(error) => Err(error.clone().with_outcome(Outcome::DidNotHappen)),
            None => Ok(()),
        }
    }

    fn new_id(&mut self) -> u32 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if self.next_id != 0 && !self.requests.contains_key(&self.next_id) {
                return self.next_id;
            }
        }
    }

    fn push_append(&mut self, id: u32, entry: &[u8]) {
        let mut frame = match self.frame.take() {
            Some(frame) if frame.has_room(&self.out, entry.len()) => frame,
            full => {
                if let Some(frame) = full {
                    frame.finish(&mut self.out);
                }
                AppendFrameEncoder::begin(&mut self.out)
            }
        };
        frame.push(&mut self.out, id, entry);
        self.frame = Some(frame);
    }

    fn finish_frame(&mut self) {
        if let Some(frame) = self.frame.take() {
            frame.finish(&mut self.out);
        }
    }
}

struct Shared {
    state: Mutex<State>,
    /// For the writer task: there is something to write, or it is over.
    wake: Notify,
    /// For the reader task: it is over.
    ended: Notify,
    /// The socket, when callers may write to it themselves.
    direct: Option<Arc<OwnedWriteHalf>>,
}

enum Writer {
    Tcp(Arc<OwnedWriteHalf>),
    Other(Box<dyn AsyncWrite + Send + Unpin>),
}

impl Writer {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Other(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::Tcp(socket) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    match socket.try_write(rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            socket.writable().await?;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }
}

/// A connection that has been greeted. Closes when dropped.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    pub(crate) welcome: Welcome,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close("the client closed the connection");
    }
}

impl Connection {
    /// Connects and exchanges greetings.
    pub(crate) async fn open(config: &ClientConfig) -> Result<Self, ClientError> {
        let attempt = Self::open_unbounded(config);
        match tokio::time::timeout(config.connect_timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(&config.addr, "no answer in time")),
        }
    }

    async fn open_unbounded(config: &ClientConfig) -> Result<Self, ClientError> {
        let connector = tls::connector(config)?;
        let socket = TcpStream::connect(&config.addr).await;
        let socket = socket.map_err(|error| unreachable(&config.addr, error))?;
        socket
            .set_nodelay(true)
            .map_err(|error| unreachable(&config.addr, error))?;
        match connector {
            None => {
                let (reader, writer) = socket.into_split();
                let socket = Arc::new(writer);
                let direct = Some(Arc::clone(&socket));
                Self::greet(config, Box::new(reader), Writer::Tcp(socket), direct).await
            }
            Some((connector, name)) => {
                let stream = connector.connect(name, socket).await;
                let stream = stream.map_err(|error| tls::handshake_error(&error))?;
                let (reader, writer) = tokio::io::split(stream);
                Self::greet(
                    config,
                    Box::new(reader),
                    Writer::Other(Box::new(writer)),
                    None,
                )
                .await
            }
        }
    }

    async fn greet(
        config: &ClientConfig,
        mut reader: Box<dyn AsyncRead + Send + Unpin>,
        mut writer: Writer,
        direct: Option<Arc<OwnedWriteHalf>>,
    ) -> Result<Self, ClientError> {
        let mut out = BytesMut::with_capacity(OUT_BYTES_START);
        config.hello().encode(&mut out)?;
        let written = writer.write_all(&out).await;
        written.map_err(|error| unreachable(&config.addr, error))?;
        out.clear();
        let mut input = BytesMut::with_capacity(READ_BYTES);
        let raw = loop {
            if let Some(raw) = native::split_frame(&mut input)? {
                break raw;
            }
            let read = reader.read_buf(&mut input).await;
            if read.map_err(|error| unreachable(&config.addr, error))? == 0 {
                return Err(unreachable(
                    &config.addr,
                    "it closed the connection at once",
                ));
            }
        };
        let welcome = match ServerFrame::decode(raw)? {
            ServerFrame::Welcome(welcome) if welcome.version == native::PROTOCOL_VERSION => welcome,
            ServerFrame::Error(error) => return Err(error.into()),
            _ => return Err(ClientError::Protocol("no greeting came".to_owned())),
        };
        let state = State {
            out,
            frame: None,
            writing: false,
            closed: None,
            requests: HashMap::new(),
            appends_under_way: 0,
            alone: true,
            next_id: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: Notify::new(),
            ended: Notify::new(),
            direct,
        });
        tokio::spawn(write_loop(Arc::clone(&shared), writer));
        tokio::spawn(read_loop(Arc::clone(&shared), reader, input));
        Ok(Self { shared, welcome })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.shared.state.lock().closed.is_none()
    }

    /// Sends an encoded entry; the receiver gets the answer, or an error when the connection ends.
    /// When the connection is closed already, the permit comes back with the error.
    pub(crate) fn append(
        &self,
        entry: &[u8],
        permit: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Answer>, (ApiError, OwnedSemaphorePermit)> {
        let (done, answer) = oneshot::channel();
        let mut state = self.shared.state.lock();
        if let Err(error) = state.check_open() {
            return Err((error, permit));
        }
        let id = state.new_id();
        let idle = state.out.is_empty() && !state.writing && state.appends_under_way == 0;
        state.push_append(id, entry);
        state.requests.insert(id, Request::Append { done, permit });
        state.appends_under_way += 1;
        match &self.shared.direct {
            Some(socket) if idle && state.alone => {
                state.finish_frame();
                // What the socket does not take now, and an error, are left to the writer task.
                let written = socket.try_write(&state.out).unwrap_or(0);
                state.out.advance(written);
                if state.out.is_empty() {
                    state.out.clear();
                    return Ok(answer);
                }
            }
            _ => {}
        }
        drop(state);
        self.shared.wake.notify_one();
        Ok(answer)
    }

    /// Sends a request that is answered by one frame.
    pub(crate) fn call(
        &self,
        encode: impl FnOnce(&mut BytesMut, u32),
    ) -> Result<oneshot::Receiver<Result<ServerFrame, ApiError>>, ApiError> {
        let (done, answer) = oneshot::channel();
        let mut state = self.shared.state.lock();
        state.check_open()?;
        let id = state.new_id();
        state.finish_frame();
        encode(&mut state.out, id);
        state.requests.insert(id, Request::Unary(done));
        drop(state);
        self.shared.wake.notify_one();
        Ok(answer)
    }

    /// Sends a request that is answered by frames until one of them ends it.
    pub(crate) fn stream(
        self: &Arc<Self>,
        encode: impl FnOnce(&mut BytesMut, u32) -> Result<(), EncodeError>,
    ) -> Result<FrameStream, ClientError> {
        let (sender, frames) = mpsc::unbounded_channel();
        let mut state = self.shared.state.lock();
        state.check_open()?;
        let id = state.new_id();
        state.finish_frame();
        encode(&mut state.out, id)?;
        state.requests.insert(id, Request::Stream(sender));
        drop(state);
        self.shared.wake.notify_one();
        Ok(FrameStream {
            connection: Arc::clone(self),
            id,
            frames,
            ungranted: 0,
        })
    }

    /// Gives the connection up, so that the next request opens another one.
    pub(crate) fn give_up(&self, why: &str) {
        self.shared.close(why);
    }
}

/// The frames of a read or subscription. Cancels it when dropped.
pub(crate) struct FrameStream {
    connection: Arc<Connection>,
    id: u32,
    frames: mpsc::UnboundedReceiver<StreamItem>,
    ungranted: u32,
}

impl FrameStream {
    /// The next frame; safe to drop and call again.
    pub(crate) async fn next(&mut self) -> StreamItem {
        match self.frames.recv().await {
            Some(item) => item,
            None => Err(lost("the request has ended")),
        }
    }

    /// Returns credit for a page that was taken, in steps of a quarter of the window.
    pub(crate) fn grant(&mut self, bytes: u32, window_bytes: u32) {
        self.ungranted += bytes;
        if self.ungranted < window_bytes / 4 {
            return;
        }
        let (id, bytes) = (self.id, std::mem::take(&mut self.ungranted));
        self.connection
            .shared
            .send(|out| native::encode_credit(out, id, bytes));
    }

    /// Gives up the whole connection, because it shows no sign of life.
    pub(crate) fn give_up_connection(&self, why: &str) {
        self.connection.give_up(why);
    }
}

impl Drop for FrameStream {
    fn drop(&mut self) {
        let id = self.id;
        let known = self
            .connection
            .shared
            .state
            .lock()
            .requests
            .remove(&id)
            .is_some();
        if known {
            self.connection
                .shared
                .send(|out| native::encode_cancel(out, id));
        }
    }
}

impl Shared {
    /// Sends a frame that has no answer; does nothing once closed.
    fn send(&self, encode: impl FnOnce(&mut BytesMut)) {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return;
        }
        state.finish_frame();
        encode(&mut state.out);
        drop(state);
        self.wake.notify_one();
    }

    /// Closes: everything under way may or may not have happened.
    fn close(&self, why: &str) {
        let requests = {
            let mut state = self.state.lock();
            if state.closed.is_some() {
                return;
            }
            state.closed = Some(lost(why));
            state.out = BytesMut::new();
            state.frame = None;
            std::mem::take(&mut state.requests)
        };
        self.wake.notify_one();
        self.ended.notify_one();
        for request in requests.into_values() {
            request.fail(lost(why));
        }
    }
}

impl Request {
    fn fail(self, error: ApiError) {
        // A receiver that is gone no longer wants to know.
        match self {
            Self::Append { done, permit } => drop(done.send((Err(error), permit))),
            Self::Unary(done) => drop(done.send(Err(error))),
            Self::Stream(sender) => drop(sender.send(Err(error))),
        }
    }
}

fn lost(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        format!("the connection was lost: {why}"),
    )
}

fn unreachable(addr: &str, why: impl std::fmt::Display) -> ClientError {
    let message = format!("no connection to {addr}: {why}");
    ClientError::unavailable(message, Outcome::DidNotHappen)
}

async fn write_loop(shared: Arc<Shared>, mut writer: Writer) {
    let mut spare = BytesMut::with_capacity(OUT_BYTES_START);
    loop {
        shared.wake.notified().await;
        // Let every task that is ready add its append to the frame first.
        tokio::task::yield_now().await;
        loop {
            {
                let mut state = shared.state.lock();
                if state.closed.is_some() {
                    return;
                }
                state.finish_frame();
                state.writing = !state.out.is_empty();
                if state.out.is_empty() {
                    break;
                }
                std::mem::swap(&mut state.out, &mut spare);
            }
            if let Err(error) = writer.write_all(&spare).await {
                shared.close(&error.to_string());
                return;
            }
            spare.clear();
            if spare.capacity() > SPARE_BYTES_MAX {
                spare = BytesMut::with_capacity(OUT_BYTES_START);
            }
        }
    }
}

async fn read_loop(
    shared: Arc<Shared>,
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    mut input: BytesMut,
) {
    let mut read_bytes = READ_BYTES;
    loop {
        let why = match read_some(&shared, &mut reader, &mut input, &mut read_bytes).await {
            Ok(true) => continue,
            Ok(false) => "the server closed it".to_owned(),
            Err(error) => error,
        };
        shared.close(&why);
        return;
    }
}

/// Handles all whole frames, then reads more; `false` at the end of the connection.
async fn read_some(
    shared: &Shared,
    reader: &mut (dyn AsyncRead + Send + Unpin),
    input: &mut BytesMut,
    read_bytes: &mut usize,
) -> Result<bool, String> {
    while let Some(raw) = native::split_frame(input).map_err(|error| error.to_string())? {
        let id = raw.request_id;
        // As much as the last frame had: then a page arrives in one piece of memory, uncopied.
        let frame_bytes = FRAME_HEADER_BYTES + raw.payload.len();
        *read_bytes = frame_bytes.clamp(READ_BYTES, READ_BYTES_MAX);
        let frame = ServerFrame::decode(raw).map_err(|error| error.to_string())?;
        dispatch(shared, id, frame)?;
    }
    let wanted = native::frame_bytes_wanted(input).map_err(|error| error.to_string())?;
    let missing = wanted - input.len().min(wanted);
    if input.is_empty() {
        input.reserve(wanted.max(*read_bytes));
    } else if input.capacity() - input.len() < missing {
        input.reserve(missing.max(READ_BYTES));
    }
    tokio::select! {
        read = reader.read_buf(input) => {
            read.map(|bytes| bytes != 0).map_err(|error| error.to_string())
        }
        // This side closed it, while the peer may be silent for ever.
        () = shared.ended.notified() => Ok(false),
    }
}

fn dispatch(shared: &Shared, id: u32, frame: ServerFrame) -> Result<(), String> {
    match frame {
        ServerFrame::AppendReply(results) => {
            dispatch_appends(shared, results);
            Ok(())
        }
        ServerFrame::Error(error) if id == 0 => Err(error.to_string()),
        ServerFrame::Error(error) => {
            let request = shared.state.lock().requests.remove(&id);
            if let Some(request) = request {
                request.fail(error);
            }
            Ok(())
        }
        ServerFrame::Skipped => Ok(()),
        frame => dispatch_frame(shared, id, frame),
    }
}

fn dispatch_frame(shared: &Shared, id: u32, frame: ServerFrame) -> Result<(), String> {
    let ends = !matches!(
        frame,
        ServerFrame::Page(_) | ServerFrame::CaughtUp(_) | ServerFrame::Heartbeat(_)
    );
    let mut state = shared.state.lock();
    match state.requests.get(&id) {
        Some(Request::Stream(sender)) => {
            // A receiver that is gone cancels by itself.
            drop(sender.send(Ok(frame)));
            if ends {
                state.requests.remove(&id);
            }
            Ok(())
        }
        Some(Request::Unary(_)) => {
            let request = state.requests.remove(&id);
            drop(state);
            if let Some(Request::Unary(done)) = request {
                drop(done.send(Ok(frame)));
            }
            Ok(())
        }
        Some(Request::Append { .. }) => Err(format!("request {id} was answered by another kind")),
        // Of a request that was cancelled meanwhile.
        None => Ok(()),
    }
}

fn dispatch_appends(shared: &Shared, results: Vec<(u32, AppendResult)>) {
    let mut answered = Vec::with_capacity(results.len());
    {
        let mut state = shared.state.lock();
        state.alone = results.len() <= 1;
        for (id, result) in results {
            if let Some(Request::Append { done, permit }) = state.requests.remove(&id) {
                state.appends_under_way -= 1;
                answered.push((done, permit, result));
            }
        }
    }
    for (done, permit, result) in answered {
        drop(done.send((result, permit)));
    }
}
