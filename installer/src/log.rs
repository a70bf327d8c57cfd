//! The messages of the program, kept in memory to be taken along on a stick.
//!
//! They go to standard error as well when that was asked for; usually the serial line is the view's.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that are kept; the older half goes when there are more.
const BYTES_MAX: usize = 512 << 10;

/// Messages kept in memory.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    kept: Arc<Mutex<Vec<u8>>>,
    also_stderr: bool,
}

impl Ring {
    /// An empty one, which may write to standard error too.
    #[must_use]
    pub fn new(also_stderr: bool) -> Ring {
        Ring {
            kept: Arc::default(),
            also_stderr,
        }
    }

    /// All that is kept.
    #[must_use]
    pub fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }

    /// Takes the messages of `tracing` from here on.
    pub fn install(&self, level: tracing::Level) {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_target(false)
            .with_writer(self.clone())
            .finish();
        // A second one in the same process, as in a test, changes nothing.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }
}

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() + bytes.len() > BYTES_MAX {
            let half = kept.len() / 2;
            kept.drain(..half);
        }
        kept.extend_from_slice(bytes);
        if self.also_stderr {
            io::stderr().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Ring {
    type Writer = Ring;

    fn make_writer(&'a self) -> Ring {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_messages_are_kept_in_bounded_memory() {
        let mut ring = Ring::new(false);
        let line = [b'x'; 1000];
        for _ in 0..2000 {
            ring.write_all(&line).unwrap();
        }
        ring.write_all(b"the last").unwrap();
        let text = ring.text();
        assert!(text.len() <= BYTES_MAX && text.ends_with("the last"));
    }
}
