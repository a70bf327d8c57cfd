//! What the steps of `cargo xtask test` count: reading the totals that test runners print.

use crate::process::plain;

/// Tests that passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
}

impl Count {
    /// One test that passed.
    pub(crate) const ONE: Self = Self {
        passed: 1,
        failed: 0,
    };

    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
        }
    }

    /// The count of a step: what its output says (else one test), and never without a failure if
    /// the step failed.
    pub(crate) fn of_step(output: &str, succeeded: bool) -> Self {
        let mut count = Self::in_output(output);
        if !succeeded && count.failed == 0 {
            count.failed = 1;
        } else if succeeded && count == Self::default() {
            count = Self::ONE;
        }
        count
    }

    /// Sums the totals of cargo-nextest, of the test harness of Rust, and of lines of our own form
    /// (`N passed, N failed`) in an output.
    pub(crate) fn in_output(output: &str) -> Self {
        let text = plain(output);
        let is_nextest = |line: &&str| line.trim_start().starts_with("Summary [");
        let summaries: Vec<&str> = text.lines().filter(is_nextest).collect();
        // cargo-nextest shows what a failed test printed, the harness's own total of one test among it.
        let lines = if summaries.is_empty() {
            text.lines().collect()
        } else {
            summaries
        };
        let counts = lines.into_iter().filter_map(Self::in_line);
        counts.fold(Self::default(), Self::plus)
    }

    fn in_line(line: &str) -> Option<Self> {
        let line = line.trim();
        // Python's unittest: `Ran 3 tests in 0.3s`. Its failures show in the status of the step.
        if let Some(ran) = line.strip_prefix("Ran ") {
            return Some(Self {
                passed: number_before(ran, " test")?,
                failed: 0,
            });
        }
        let is_total = line.starts_with("Summary [")
            || line.starts_with("test result:")
            || line
                .strip_suffix(" failed")
                .is_some_and(|rest| rest.contains(" passed, "));
        if !is_total {
            return None;
        }
        let passed = number_before(line, " passed")?;
        // A run that timed out is a failure; nextest counts it apart.
        let failed = [" failed", " timed out", " exec failed"]
            .iter()
            .filter_map(|word| number_before(line, word))
            .sum();
        Some(Self { passed, failed })
    }
}

/// The number that stands right before `word`.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let before = &line[..line.find(word)?];
    let digits = before
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(before, |at| &before[at + 1..]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(passed: u64, failed: u64) -> Count {
        Count { passed, failed }
    }

    #[test]
    fn totals_of_each_runner_are_read() {
        let nextest =
            "     Summary [   0.116s] 25 tests run: 24 passed (1 slow), 1 failed, 3 skipped";
        assert_eq!(Count::in_output(nextest), count(24, 1));
        let timed_out =
            "     Summary [  60.1s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped";
        assert_eq!(Count::in_output(timed_out), count(1, 2));
        let harness =
            "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Count::in_output(harness), count(7, 2));
        assert_eq!(Count::in_output("12 passed, 0 failed"), count(12, 0));
        assert_eq!(Count::in_output("Ran 3 tests in 0.291s"), count(3, 0));
    }

    #[test]
    fn totals_add_up_over_many_lines() {
        let lines = "test result: ok. 7 passed; 0 failed; 0 ignored\nnoise\ntest result: ok. 3 passed; 0 failed";
        assert_eq!(Count::in_output(lines), count(10, 0));
    }

    #[test]
    fn a_failed_test_of_nextest_counts_once() {
        let shown = "test result: FAILED. 0 passed; 1 failed; 0 ignored\n\
                     Summary [   0.1s] 2 tests run: 1 passed, 1 failed, 0 skipped";
        assert_eq!(Count::in_output(shown), count(1, 1));
    }

    #[test]
    fn prose_is_no_total() {
        assert_eq!(
            Count::in_output("the check passed, nothing failed"),
            Count::default()
        );
    }

    #[test]
    fn a_step_counts_at_least_once_and_a_failed_step_has_a_failure() {
        assert_eq!(Count::of_step("", true), count(1, 0));
        assert_eq!(Count::of_step("", false), count(0, 1));
        assert_eq!(
            Count::of_step("test result: ok. 7 passed; 0 failed;", false),
            count(7, 1)
        );
    }
}
