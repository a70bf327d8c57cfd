//! Writers that append events and remember what was acknowledged, and the check that all of it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::http;

/// Events that one page of a read brings.
const PAGE_EVENTS: usize = 5000;

/// Writers at work, each with a stream of its own.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Vec<Arc<AtomicU64>>,
    writers: Vec<JoinHandle<()>>,
    prefix: String,
}

/// What the writers know to be acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    prefix: String,
    /// Events of each stream.
    events: Vec<u64>,
}

impl Load {
    /// Starts writers, which append event after event to `PREFIX-N` until they are stopped or the server is gone.
    #[must_use]
    pub fn start(port: u16, prefix: &str, writers: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Vec<_> = (0..writers).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let threads = acknowledged.iter().enumerate().map(|(number, count)| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(count));
            let stream = format!("{prefix}-{number}");
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    let body = append_body(&stream, count.load(Ordering::Acquire));
                    // Only an answer counts. After anything else it is not known whether the event is there, so
                    // the same event could be there twice: the writer ends.
                    match http::post(port, "/v1/append", &body) {
                        Ok(answer) if answer.status == 200 => {
                            count.fetch_add(1, Ordering::AcqRel);
                        }
                        _ => return,
                    }
                }
            })
        });
        let writers = threads.collect();
        Load {
            stop,
            acknowledged,
            writers,
            prefix: prefix.to_owned(),
        }
    }

    /// Events acknowledged so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        let counts = self.acknowledged.iter();
        counts.map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// Stops the writers, unless the server did it.
    #[must_use]
    pub fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::Release);
        for writer in self.writers {
            // A writer that panicked acknowledged nothing more.
            let _ = writer.join();
        }
        let counts = self.acknowledged.iter();
        Acknowledged {
            events: counts.map(|count| count.load(Ordering::Acquire)).collect(),
            prefix: self.prefix,
        }
    }
}

fn append_body(stream: &str, number: u64) -> String {
    json!({ "events": [{ "stream": stream, "type": "counted", "payload": { "n": number } }] })
        .to_string()
}

impl Acknowledged {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.events.iter().sum()
    }

    /// Whether every acknowledged event is there, in order. The one event of a stream that was under way may be there
    /// too, and no other.
    ///
    /// # Errors
    ///
    /// The first stream that is not as it must be.
    pub fn check(&self, port: u16) -> Result<()> {
        for (number, wanted) in self.events.iter().enumerate() {
            let stream = format!("{}-{number}", self.prefix);
            let found = read_stream(port, &stream)
                .with_context(|| format!("reading the stream {stream}"))?;
            let at = found.iter().zip(0..).find(|(found, at)| *found != at);
            ensure!(
                at.is_none(),
                "{stream}: event {} has another content",
                at.map_or(0, |x| x.1)
            );
            let count = found.len() as u64;
            ensure!(
                count == *wanted || count == wanted + 1,
                "{stream}: {wanted} events were acknowledged, {count} are there"
            );
        }
        Ok(())
    }
}

/// The numbers in the events of a stream, in its order.
fn read_stream(port: u16, stream: &str) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut from = Value::Null;
    loop {
        let from_text = match &from {
            Value::Null => String::new(),
            from => format!("&from={from}"),
        };
        let path = format!("/v1/streams/{stream}/events?limit={PAGE_EVENTS}{from_text}");
        let answer = http::get(port, &path)?;
        if answer.status == 404 {
            return Ok(numbers);
        }
        ensure!(
            answer.status == 200,
            "the server answers {}: {}",
            answer.status,
            answer.body
        );
        let mut page: Value = serde_json::from_str(&answer.body).context("in a page")?;
        let events = page["events"].as_array().context("a page without events")?;
        for event in events {
            numbers.push(
                event["payload"]["n"]
                    .as_u64()
                    .context("an event without its number")?,
            );
        }
        if events.is_empty() || page["next"].is_null() {
            return Ok(numbers);
        }
        from = page["next"].take();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A server that answers every request with the next of the given bodies.
    fn server(bodies: Vec<String>) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for body in bodies {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                let length = body.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all((head + &body).as_bytes()).unwrap();
            }
        });
        port
    }

    fn page(numbers: &[u64], next: Option<u64>) -> String {
        let events = numbers.iter().map(|n| json!({ "payload": { "n": n } }));
        json!({ "events": events.collect::<Vec<_>>(), "next": next }).to_string()
    }

    fn acknowledged(events: u64) -> Acknowledged {
        Acknowledged {
            prefix: "load".into(),
            events: vec![events],
        }
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_one_more_may() {
        let pages = || vec![page(&[0, 1], Some(2)), page(&[2], None)];
        acknowledged(3).check(server(pages())).unwrap();
        acknowledged(2).check(server(pages())).unwrap();
        assert!(acknowledged(4).check(server(pages())).is_err());
        assert!(acknowledged(1).check(server(pages())).is_err());
        assert!(
            acknowledged(2)
                .check(server(vec![page(&[0, 2], None)]))
                .is_err()
        );
    }

    #[test]
    fn only_answers_count() {
        let load = Load::start(server(vec!["{}".into(), "{}".into()]), "load", 1);
        let deadline = crate::wait::Deadline::after(std::time::Duration::from_secs(30));
        let two = deadline.until(|| Ok((load.count() == 2).then_some(())));
        assert!(two.unwrap().is_some());
        assert_eq!(load.stop().total(), 2);
    }
}
