//! Waiting for something to become true, with a deadline.

use std::time::{Duration, Instant};

use anyhow::Result;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// A point in time after which nothing is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Instant,
    start: Instant,
}

impl Deadline {
    /// So far from now.
    #[must_use]
    pub fn after(time: Duration) -> Deadline {
        let start = now();
        Deadline {
            end: start + time,
            start,
        }
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        now() >= self.end
    }

    /// Time since it was set.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        now() - self.start
    }

    /// Looks at a condition until it has a value; `None` when the deadline passes first.
    ///
    /// # Errors
    ///
    /// Those of the condition, at once.
    pub fn until<T>(&self, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        loop {
            if let Some(value) = condition()? {
                return Ok(Some(value));
            }
            if self.is_over() {
                return Ok(None);
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a harness waits for programs that live in real time"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_looked_at_until_it_holds_or_the_deadline_passes() {
        let mut looks = 0;
        let third = Deadline::after(Duration::from_secs(60)).until(|| {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(third.unwrap(), Some(3));
        let over = Deadline::after(Duration::ZERO);
        assert_eq!(over.until(|| Ok(None::<()>)).unwrap(), None);
        assert!(over.is_over());
    }
}
