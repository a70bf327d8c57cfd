//! Numbered steps with their times, as people see them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The steps of a run.
#[derive(Debug)]
pub(crate) struct Steps {
    at: usize,
    total: usize,
    taken: Vec<(String, Duration)>,
}

impl Steps {
    /// So many steps.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            at: 0,
            total,
            taken: Vec::new(),
        }
    }

    /// One step. Its failure names it.
    ///
    /// # Errors
    ///
    /// Those of the step.
    pub(crate) fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.at += 1;
        println!("[{}/{}] {name}", self.at, self.total);
        let start = now();
        let outcome = step().with_context(|| format!("step {} ({name}) failed", self.at))?;
        self.taken.push((name.to_owned(), start.elapsed()));
        Ok(outcome)
    }

    /// What took how long.
    pub(crate) fn summary(&self) -> String {
        let line = |(name, taken): &(String, Duration)| {
            format!("      {name:<40} {:>8.1} s\n", taken.as_secs_f64())
        };
        self.taken.iter().map(line).collect()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a step takes is for people, not for logic"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_step() {
        let mut steps = Steps::new(2);
        steps.run("kernel", || Ok(())).unwrap();
        let failed: Result<()> = steps.run("image", || anyhow::bail!("no stub"));
        let error = format!("{:#}", failed.unwrap_err());
        assert_eq!(error, "step 2 (image) failed: no stub");
        assert!(steps.summary().contains("kernel"));
    }
}
