//! A time server (SNTP, RFC 4330) that is wrong by as much as a test wants: it tells a machine a time that no clock
//! has.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait::Deadline;

/// Bytes of a message.
const MESSAGE_BYTES: usize = 48;
/// Seconds between 1900, from where the protocol counts, and 1970.
const ERA_S: u64 = 2_208_988_800;
/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct TimeServer {
    port: u16,
    time_s: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TimeServer {
    /// Starts a server whose clock begins at a time, in seconds since 1970.
    ///
    /// # Errors
    ///
    /// No port.
    pub fn start(time_s: u64) -> Result<TimeServer> {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).context("looking for a port")?;
        socket
            .set_read_timeout(Some(LOOK))
            .context("setting a timeout")?;
        let port = socket.local_addr().context("looking for a port")?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let time_s = Arc::new(AtomicU64::new(time_s));
        let begin_s = Arc::clone(&time_s);
        let since = Deadline::after(Duration::ZERO);
        let thread = std::thread::spawn(move || {
            let mut asked = [0; 512];
            while !ends.load(Ordering::Acquire) {
                let Ok((bytes, from)) = socket.recv_from(&mut asked) else {
                    continue;
                };
                let time_s = begin_s.load(Ordering::Acquire) + since.elapsed().as_secs();
                if let Some(answer) = answer(&asked[..bytes], time_s) {
                    // A lost answer is asked for again.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(TimeServer {
            port,
            time_s,
            stop,
            thread: Some(thread),
        })
    }

    /// Sets the time that its clock began at.
    pub fn set(&self, time_s: u64) {
        self.time_s.store(time_s, Ordering::Release);
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TimeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[expect(clippy::big_endian_bytes, reason = "the protocol is big-endian")]
fn answer(asked: &[u8], time_s: u64) -> Option<[u8; MESSAGE_BYTES]> {
    let asked: &[u8; MESSAGE_BYTES] = asked.get(..MESSAGE_BYTES)?.try_into().ok()?;
    let mut out = [0; MESSAGE_BYTES];
    // No warning, the version that was asked for, an answer; stratum 1, the precision of a microsecond.
    out[0] = (asked[0] & 0x38) | 4;
    out[1] = 1;
    out[2] = asked[2];
    out[3] = 0xec;
    out[12..16].copy_from_slice(b"TEST");
    let seconds = u32::try_from((time_s + ERA_S) & u64::from(u32::MAX)).ok()?;
    // Last set, asked at (the machine's own words), received, sent.
    out[24..32].copy_from_slice(&asked[40..48]);
    for at in [16, 32, 40] {
        out[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::big_endian_bytes, reason = "the protocol is big-endian")]
    fn a_question_gets_the_time_and_noise_nothing() {
        let server = TimeServer::start(1_893_456_000).unwrap();
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        socket.connect(("127.0.0.1", server.port())).unwrap();
        socket.send(b"noise").unwrap();
        let mut question = [0; MESSAGE_BYTES];
        question[0] = 0x23;
        question[40..48].copy_from_slice(b"origin!!");
        socket.send(&question).unwrap();
        let mut said = [0; 64];
        assert_eq!(socket.recv(&mut said).unwrap(), MESSAGE_BYTES);
        assert_eq!((said[0], &said[24..32]), (0x24, &b"origin!!"[..]));
        let seconds = u32::from_be_bytes(said[40..44].try_into().unwrap());
        let since = u64::from(seconds) - ERA_S - 1_893_456_000;
        assert!(since < 3600, "{since}");
    }
}
