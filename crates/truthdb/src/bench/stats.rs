//! Latencies, medians, and how figures are written.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies with three significant digits, up to a minute.
#[derive(Debug, Clone)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(super) fn new() -> Latencies {
        Latencies(Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("legal bounds"))
    }

    /// Counts one; more than a minute counts as a minute.
    pub(super) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Takes another's in.
    pub(super) fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("the same bounds everywhere");
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// A quantile (0 to 1) in microseconds.
    pub(super) fn us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The usual quantiles, in microseconds.
    pub(super) fn json(&self) -> Value {
        json!({
            "count": self.count(),
            "p50_us": self.us(0.5),
            "p90_us": self.us(0.9),
            "p99_us": self.us(0.99),
            "p99_9_us": self.us(0.999),
            "p99_99_us": self.us(0.9999),
            "max_us": self.us(1.0),
        })
    }
}

/// The median of the rounds with the lowest and the highest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// Of at least one figure.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let median = f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]);
        Spread {
            median,
            low: sorted[0],
            high: sorted[last],
        }
    }

    /// `median (low–high)`; the median alone when there was one round.
    pub(super) fn text(&self, decimals: usize) -> String {
        if self.low.total_cmp(&self.high).is_eq() {
            return number(self.median, decimals);
        }
        format!(
            "{} ({}–{})",
            number(self.median, decimals),
            number(self.low, decimals),
            number(self.high, decimals)
        )
    }

    /// For `--json`.
    pub(super) fn json(&self) -> Value {
        json!({"median": self.median, "low": self.low, "high": self.high})
    }
}

/// A number with commas between the thousands.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (whole, fraction) = plain
        .split_once('.')
        .map_or((plain.as_str(), ""), |parts| parts);
    let (sign, digits) = whole
        .strip_prefix('-')
        .map_or(("", whole), |digits| ("-", digits));
    let mut text = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let odd = Spread::of([5.0, 1.0, 3.0]);
        assert_eq!(
            odd,
            Spread {
                median: 3.0,
                low: 1.0,
                high: 5.0
            }
        );
        assert!((Spread::of([4.0, 2.0]).median - 3.0).abs() < 1e-9);
        assert_eq!(odd.text(0), "3 (1–5)");
        assert_eq!(Spread::of([7.25]).text(1), "7.2");
    }

    #[test]
    fn numbers_have_commas_between_thousands() {
        assert_eq!(number(1_234_567.891, 2), "1,234,567.89");
        assert_eq!(number(-1_000.0, 0), "-1,000");
        assert_eq!(number(999.0, 0), "999");
    }

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut latencies = Latencies::new();
        for us in 1..=100 {
            latencies.record_ns(us * 1000);
        }
        assert!((latencies.us(0.5) - 50.0).abs() < 0.1);
        assert!((latencies.us(1.0) - 100.0).abs() < 0.2);
    }
}
