//! What happened in the simulated world, as a hash and, if wanted, as text.

use xxhash_rust::xxh3::xxh3_64;

/// A running hash of all operations.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hash: u64,
    text: Option<Vec<String>>,
}

impl Trace {
    /// Adds an event: its numbers, its data, and its text (an empty text is not kept).
    pub(super) fn record(&mut self, words: &[u64], data: &[u8], text: impl FnOnce() -> String) {
        for word in words {
            self.mix(*word);
        }
        self.mix(data.len() as u64);
        if !data.is_empty() {
            // Word by word in here, this was half of the simulator's time.
            self.mix(xxh3_64(data));
        }
        if let Some(lines) = &mut self.text {
            let line = text();
            if !line.is_empty() {
                lines.push(line);
            }
        }
    }

    /// One multiply and one rotate per word: enough to tell two runs apart, and quick.
    fn mix(&mut self, word: u64) {
        let mixed = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = (mixed ^ (mixed >> 32)).rotate_left(23);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Starts or stops keeping text; what was kept is dropped.
    pub(super) fn keep_text(&mut self, keep: bool) {
        self.text = keep.then(Vec::new);
    }

    pub(super) fn lines(&self) -> &[String] {
        self.text.as_deref().unwrap_or_default()
    }
}
