//! Sockets: binding, accepting, the bound on connections, TLS, and the clock on every connection.
//!
//! Memory stays bounded whatever clients do: there are at most `limits.connections_max`
//! connections, and one that does not say anything, or takes nothing, is closed in time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::metrics::{Gauge, Metrics};
use super::{Shared, stopped};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 4096;
/// How long accepting pauses when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a refused client gets to take the reason.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Binds a listening socket.
///
/// # Errors
///
/// What the operating system says: the address is in use, or not of this machine.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A connection's bytes: plain or TLS.
pub(crate) enum Transport {
    /// Plain TCP; shared with those who may write to it at once ([`TimedStream::plain`]).
    Plain(Arc<TcpStream>),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is closed when nothing happens on it, or when its client takes nothing.
pub(crate) struct TimedStream {
    transport: Transport,
    metrics: Arc<Metrics>,
    idle: Duration,
    stall: Duration,
    /// When something last happened.
    active: Instant,
    /// Since when a write waits for the client.
    stalled: Option<Instant>,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl TimedStream {
    fn new(shared: &Shared, transport: Transport) -> TimedStream {
        let limits = &shared.config.limits;
        let now = Instant::now();
        TimedStream {
            transport,
            metrics: Arc::clone(&shared.metrics),
            idle: limits.idle_timeout,
            stall: limits.slow_consumer_timeout,
            active: now,
            stalled: None,
            read_timer: Box::pin(tokio::time::sleep_until(now + limits.idle_timeout)),
            write_timer: None,
        }
    }

    /// The socket, if its bytes are those of the protocol: for writing without waiting, in between
    /// what is written here.
    pub(crate) fn plain(&self) -> Option<Arc<TcpStream>> {
        match &self.transport {
            Transport::Plain(stream) => Some(Arc::clone(stream)),
            Transport::Tls(_) => None,
        }
    }

    fn timed_out(&self, what: &str) -> io::Error {
        self.metrics
            .connections_timed_out
            .fetch_add(1, Ordering::Relaxed);
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    fn poll_transport_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => until_ready(
                || stream.poll_read_ready(context),
                || stream.try_read_buf(buffer),
            )
            .map_ok(|_| ()),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }

    /// What a write's outcome means for the clock.
    fn after_write<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.active = Instant::now();
            self.stalled = None;
            self.write_timer = None;
            return outcome;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        let due = since + self.stall;
        let timer = self
            .write_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        ready!(timer.as_mut().poll(context));
        self.metrics.slow_consumers.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Err(self.timed_out("the client took nothing for too long")))
    }
}

/// Tries a call on a socket until it does not have to wait, or the socket is not ready.
fn until_ready<T>(
    mut ready: impl FnMut() -> Poll<io::Result<()>>,
    mut call: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        ready!(ready())?;
        match call() {
            // It was only thought to be ready.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

/// Tells the peer that nothing more comes. The socket stays open for reading.
fn end_writing(stream: &TcpStream) -> io::Result<()> {
    // The same socket under another number: this is not offered for a shared one.
    let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
    match socket.shutdown(std::net::Shutdown::Write) {
        // The peer was first.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome,
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(outcome) = this.poll_transport_read(context, buffer) {
            this.active = Instant::now();
            return Poll::Ready(outcome);
        }
        loop {
            ready!(this.read_timer.as_mut().poll(context));
            // Writes count as well: a client that only listens is not idle.
            let due = this.active + this.idle;
            if due <= Instant::now() {
                return Poll::Ready(Err(this.timed_out("nothing happened for too long")));
            }
            this.read_timer.as_mut().reset(due);
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Plain(stream) => until_ready(
                || stream.poll_write_ready(context),
                || stream.try_write(bytes),
            ),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        };
        this.after_write(context, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Plain(stream) => until_ready(
                || stream.poll_write_ready(context),
                || stream.try_write_vectored(slices),
            ),
            Transport::Tls(stream) => {
                Pin::new(stream.as_mut()).poll_write_vectored(context, slices)
            }
        };
        this.after_write(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(_) => true,
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Plain(_) => Poll::Ready(Ok(())),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        };
        this.after_write(context, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Plain(stream) => Poll::Ready(end_writing(stream)),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        };
        this.after_write(context, outcome)
    }
}

/// What serves one kind of port.
pub(crate) trait Serve: Send + Sync + 'static {
    /// What a client above the bound on connections is told, as bytes of the port's protocol.
    fn refusal(&self) -> Vec<u8>;
    /// The gauge of open connections.
    fn gauge<'a>(&self, metrics: &'a Metrics) -> &'a AtomicI64;
    /// Serves one connection to its end.
    fn serve(&self, stream: TimedStream) -> impl Future<Output = ()> + Send;
}

/// Accepts connections until the server stops, then waits for those that are open.
pub(crate) async fn accept_loop<S: Serve>(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    service: Arc<S>,
) {
    let mut stopping = shared.stopping();
    let tracker = shared.tracker.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of one connection that is gone already, or of a process without descriptors.
                tracing::debug!("accepting a connection failed: {error}");
                if matches!(error.raw_os_error(), Some(23 | 24)) {
                    tracing::warn!(
                        "no file descriptors are left ({error}): raise the limit of open files, \
                         or lower limits.connections_max"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            shared
                .metrics
                .connections_refused
                .fetch_add(1, Ordering::Relaxed);
            // With TLS the reason could only be told after a handshake, which is what is too much.
            if tls.is_none() {
                tracker.spawn(refuse(stream, service.refusal()));
            }
            continue;
        };
        shared
            .metrics
            .connections_accepted
            .fetch_add(1, Ordering::Relaxed);
        let (shared, tls, service) = (Arc::clone(&shared), tls.clone(), Arc::clone(&service));
        tracker.spawn(async move {
            let _permit = permit;
            let _gauge = Gauge::enter(service.gauge(&shared.metrics));
            if let Some(stream) = establish(&shared, stream, tls).await {
                service.serve(stream).await;
            }
        });
    }
}

async fn refuse(mut stream: TcpStream, reason: Vec<u8>) {
    // The client may be gone, or not listening; then there is nobody to tell.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, async {
        stream.write_all(&reason).await?;
        stream.shutdown().await
    })
    .await;
}

async fn establish(
    shared: &Shared,
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
) -> Option<TimedStream> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("a connection was gone before it began: {error}");
        return None;
    }
    let Some(acceptor) = tls else {
        return Some(TimedStream::new(shared, Transport::Plain(Arc::new(stream))));
    };
    let handshake = acceptor.accept(stream);
    match tokio::time::timeout(shared.config.limits.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => Some(TimedStream::new(shared, Transport::Tls(Box::new(stream)))),
        Ok(Err(error)) => {
            shared.metrics.tls_failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("a TLS handshake failed: {error}");
            None
        }
        Err(_) => {
            shared
                .metrics
                .connections_timed_out
                .fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}
