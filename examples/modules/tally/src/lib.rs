//! Sums over JSON-like payloads with one read and one write a batch: what a stateless fold costs.
//! `truthdb_module::FoldBench` has the same fold as native code, for comparison.

use truthdb_sdk::prelude::*;

truthdb_sdk::record! {
    /// The sums.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Sums {
        /// Events.
        pub events: u64,
        /// The sum of the field `amount`.
        pub amount: u64,
        /// The sum of the field `weight`, each halved and squared.
        pub weight: f64,
    }
}

truthdb_sdk::reducer! {
    /// Sums of two fields.
    pub Tally = "tally";
    tables { sums: Table<(), Sums> = 1 }
    on "*" / "measured";
    batch => fold;
}

fn fold(tables: &Tables, batch: &Batch) -> Result<(), Fault> {
    let mut sums = tables.sums.get(&()).unwrap_or_default();
    for event in batch.iter() {
        let payload = event.payload();
        sums.events += 1;
        sums.amount = sums
            .amount
            .wrapping_add(u64::from(field(payload, b"\"amount\":")?));
        let half = f64::from(field(payload, b"\"weight\":")?) / 2.0;
        sums.weight += half * half;
    }
    tables.sums.set(&(), &sums);
    Ok(())
}

/// The number after a name, found by looking at each byte.
fn field(payload: &[u8], name: &[u8]) -> Result<u32, Fault> {
    let at = payload
        .windows(name.len())
        .position(|window| window == name)
        .ok_or_else(|| Fault::new("a field is missing"))?;
    let digits = payload[at + name.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    Ok(digits.fold(0u32, |number, &digit| {
        number
            .wrapping_mul(10)
            .wrapping_add(u32::from(digit - b'0'))
    }))
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    #[test]
    fn the_sums_do_not_depend_on_batches() {
        let events: Vec<TestEvent> = (0..50)
            .map(|n| {
                let payload = format!("{{\"id\":\"x\",\"amount\":{n},\"weight\":{}}}", 2 * n);
                TestEvent::new("scale", "measured", payload)
            })
            .collect();
        let outcome = testing::check::<Tally>(&events).unwrap();
        let sums = outcome.get(&Tally::tables().sums, &()).unwrap();
        assert_eq!((sums.events, sums.amount), (50, 1225));
        assert!((sums.weight - 40425.0).abs() < 1e-9);
    }
}
