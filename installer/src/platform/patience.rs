//! Looking at several devices at once, each for a bounded time: a disk that hangs in a read holds nobody but the
//! thread that reads it. Such a thread cannot be ended. Until it ends by itself its device is not asked again, so
//! that looking again and again does not heap them up.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::machine::monotonic_ms;

/// How long devices are waited for, all of them together. A disk that sleeps is awake after some ten seconds.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Devices that did not answer, and still do not.
static HUNG: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn hung() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    HUNG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A look at a device.
pub(super) struct Look<T> {
    /// The device.
    pub(super) device: PathBuf,
    /// What looks at it.
    pub(super) look: Box<dyn FnOnce() -> T + Send>,
}

/// Carries all looks out at once. The answers are in the order of the looks: `None` where none came in time.
pub(super) fn all<T: Send + 'static>(looks: Vec<Look<T>>, deadline: Duration) -> Vec<Option<T>> {
    let began_ms = monotonic_ms();
    let left = || deadline.saturating_sub(Duration::from_millis(monotonic_ms() - began_ms));
    let (sender, receiver) = channel();
    let mut answers: Vec<Option<T>> = Vec::new();
    let mut waited_for = Vec::new();
    for (at, Look { device, look }) in looks.into_iter().enumerate() {
        answers.push(None);
        if hung().contains(&device) {
            continue;
        }
        // Changed under the lock of the list only, so that an answer right at the end leaves nothing in it.
        let is_done = Arc::new(Mutex::new(false));
        let (sender, done, path) = (sender.clone(), Arc::clone(&is_done), device.clone());
        let body = move || {
            let answer = look();
            let mut hung = hung();
            *done.lock().unwrap_or_else(PoisonError::into_inner) = true;
            hung.remove(&path);
            // Nobody may be waiting any more.
            let _ = sender.send((at, answer));
        };
        match thread::Builder::new().spawn(body) {
            Ok(_) => waited_for.push((device, is_done)),
            Err(error) => tracing::error!(%error, "no thread for {}", device.display()),
        }
    }
    drop(sender);
    // Until all have answered, or the time is over.
    while let Ok((at, answer)) = receiver.recv_timeout(left()) {
        answers[at] = Some(answer);
    }
    let mut hung = hung();
    for (device, is_done) in waited_for {
        if !*is_done.lock().unwrap_or_else(PoisonError::into_inner) {
            tracing::warn!("{} does not answer", device.display());
            hung.insert(device);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_not_asked_again_until_it_does() {
        let (release, blocked) = channel::<()>();
        let slow = || PathBuf::from("/dev/slow");
        let quick = |look| Look {
            device: "/dev/quick".into(),
            look,
        };
        let looks = vec![
            Look {
                device: slow(),
                look: Box::new(move || {
                    let _ = blocked.recv();
                }) as Box<dyn FnOnce() + Send>,
            },
            quick(Box::new(|| ())),
        ];
        assert_eq!(all(looks, Duration::from_millis(50)), [None, Some(())]);
        let again = || {
            let look = Box::new(|| ()) as Box<dyn FnOnce() + Send>;
            vec![Look {
                device: slow(),
                look,
            }]
        };
        let began_ms = monotonic_ms();
        assert_eq!(all(again(), DEADLINE), [None]);
        assert!(monotonic_ms() - began_ms < 10_000);
        release.send(()).unwrap();
        while hung().contains(&slow()) {
            thread::yield_now();
        }
        assert_eq!(all(again(), DEADLINE), [Some(())]);
    }
}
