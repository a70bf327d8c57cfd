//! The part of `truthdb bench query` that goes over the network: gets of a row by gRPC from a server that is a process
//! of its own, at rest and while clients append by the native protocol.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use truthdb_api::v1;
use truthdb_api::v1::state_client::StateClient;
use truthdb_client::{Client, NewBatch};
use truthdb_event::EventBuilder;
use truthdb_io::{Clock as _, SystemClock};

use super::child::Server;
use super::load::WARM_UP;
use super::natives::account_key;
use super::node::{Numbers, Writing};
use super::query::Window;
use super::stats::Latencies;
use super::target::{connect, failed};
use crate::exit::{ExitClass, Failure};

/// Windows at rest and under load.
pub(super) type Windows = [Vec<Window>; 2];

/// Rounds of windows on a database that is filled and closed.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn measure(
    data: &Path,
    writing: Writing,
    seconds: u64,
    rounds: u32,
) -> Result<Windows, Failure> {
    let server = Server::start(data, &[])?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::environment("cannot start the client's threads", error))?;
    let windows = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.http))
            .map_err(|error| failed("the server's address is no address", error))?
            .tcp_nodelay(true);
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| failed("cannot connect to the server", error))?;
        let mut state = StateClient::new(channel);
        wait_for_state(&mut state, writing.accounts).await?;
        let client = connect(&server).await?;
        let mut windows = Windows::default();
        for _ in 0..rounds {
            windows[0].push(window(&mut state, writing.accounts, seconds).await?);
            let writers = Writers::start(&client, writing);
            tokio::time::sleep(WARM_UP).await;
            writers.appended.store(0, Ordering::Relaxed);
            let mut window = window(&mut state, writing.accounts, seconds).await?;
            let appended = writers.appended.load(Ordering::Relaxed);
            window.append_p99_us = writers.finish().await?.us(0.99);
            window.events_per_s = (appended * writing.batch) as f64 / window.seconds;
            windows[1].push(window);
        }
        Ok(windows)
    });
    server.stop()?;
    windows
}

async fn get(state: &mut StateClient<Channel>, account: u64) -> Result<usize, tonic::Status> {
    let request = v1::StateGetRequest {
        module: "balance".to_owned(),
        table: "accounts".to_owned(),
        key: account_key(&format!("account-{account}")).into(),
        options: None,
    };
    Ok(state.get(request).await?.into_inner().rows.len())
}

/// The fold takes up its snapshot after the server listens.
async fn wait_for_state(state: &mut StateClient<Channel>, accounts: u32) -> Result<(), Failure> {
    let clock = SystemClock::new();
    loop {
        let error = match get(state, u64::from(accounts) - 1).await {
            Ok(1..) => return Ok(()),
            Ok(0) => failed("the state is not there", "the row of the last account"),
            Err(status) => failed("the state is not there", status),
        };
        if clock.monotonic_ns() > 60_000_000_000 {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn window(
    state: &mut StateClient<Channel>,
    accounts: u32,
    seconds: u64,
) -> Result<Window, Failure> {
    let mut latencies = Latencies::new();
    let mut numbers = Numbers::new(5);
    let window = SystemClock::new();
    while window.monotonic_ns() < seconds * 1_000_000_000 {
        let account = numbers.below(accounts.into());
        let clock = SystemClock::new();
        let rows = get(state, account).await;
        latencies.record_ns(clock.monotonic_ns());
        if rows.map_err(|error| failed("a get failed", error))? == 0 {
            return Err(Failure::new(
                ExitClass::Damaged,
                "a row that was written is not there",
            ));
        }
    }
    Ok(Window {
        latencies,
        seconds: window.monotonic_ns() as f64 / 1e9,
        events_per_s: 0.0,
        append_p99_us: 0.0,
    })
}

/// Tasks that append in closed loops until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    appended: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<Latencies, Failure>>>,
}

impl Writers {
    fn start(client: &Client, writing: Writing) -> Writers {
        let (stop, appended) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let task = |writer| {
            let (client, stop, appended) =
                (client.clone(), Arc::clone(&stop), Arc::clone(&appended));
            tokio::spawn(async move {
                let mut numbers = Numbers::new(writer);
                let mut latencies = Latencies::new();
                while !stop.load(Ordering::Relaxed) {
                    let mut batch = NewBatch::new();
                    for _ in 0..writing.batch {
                        let account = numbers.below(u64::from(writing.accounts));
                        let stream = format!("account-{account}");
                        let event = EventBuilder::new(&stream, writing.event_type).payload(b"1");
                        let pushed = batch.push(event);
                        pushed.map_err(|error| failed("the batch is not legal", error))?;
                    }
                    let clock = SystemClock::new();
                    let acknowledged = client.append(batch).await;
                    acknowledged.map_err(|error| failed("an append failed", error))?;
                    latencies.record_ns(clock.monotonic_ns());
                    appended.fetch_add(1, Ordering::Relaxed);
                    if !writing.pause.is_zero() {
                        tokio::time::sleep(writing.pause).await;
                    }
                }
                Ok(latencies)
            })
        };
        Writers {
            tasks: (1..=writing.writers).map(task).collect(),
            stop,
            appended,
        }
    }

    async fn finish(self) -> Result<Latencies, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = Latencies::new();
        for task in self.tasks {
            let seen = task
                .await
                .map_err(|error| failed("a writer ended", error))??;
            latencies.add(&seen);
        }
        Ok(latencies)
    }
}
