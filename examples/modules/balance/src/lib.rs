//! Balances of accounts: the module that also exists in C, JavaScript and Python beside this file.
//! All four leave the same rows and the same derived events; see README.md for what it does.

use truthdb_sdk::prelude::*;

truthdb_sdk::record! {
    /// An account that is open.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct Account {
        /// Deposits less withdrawals.
        pub balance: i64,
        /// How many of them there were.
        pub movements: u32,
    }
}

truthdb_sdk::record! {
    /// What the last audit found.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Totals {
        /// Open accounts.
        pub accounts: u64,
        /// The sum of their balances.
        pub sum: i64,
        /// The mean of their balances; 0 if there are none.
        pub mean: f64,
    }
}

truthdb_sdk::processor! {
    /// Balances of accounts, an alert when one is overdrawn, and totals on request.
    pub Balance = "balance";
    tables {
        accounts: Table<String, Account> = 1,
        totals: Table<(), Totals> = 1,
    }
    on "account-*" / "deposit" (String) => deposit;
    on "account-*" / "withdraw" (String) => withdraw;
    on "account-*" / "close" (()) => close;
    on "audit" / "run" (()) => audit;
}

fn deposit(
    tables: &Tables,
    event: &Event<'_>,
    amount: String,
    out: &mut Emitter,
) -> Result<(), Fault> {
    move_by(tables, event, parse(&amount)?, out);
    Ok(())
}

fn withdraw(
    tables: &Tables,
    event: &Event<'_>,
    amount: String,
    out: &mut Emitter,
) -> Result<(), Fault> {
    move_by(tables, event, -parse(&amount)?, out);
    Ok(())
}

fn parse(amount: &str) -> Result<i64, Fault> {
    let amount: u32 = amount
        .parse()
        .map_err(|_| Fault::new(format!("{amount:?} is no amount")))?;
    Ok(amount.into())
}

fn move_by(tables: &Tables, event: &Event<'_>, amount: i64, out: &mut Emitter) {
    let name = event.stream().to_owned();
    let mut account = tables.accounts.get(&name).unwrap_or_default();
    account.balance += amount;
    account.movements += 1;
    tables.accounts.set(&name, &account);
    if account.balance < 0 {
        let text = format!("{name} {}", account.balance);
        out.emit("alerts", "overdrawn", "text/plain", text.as_bytes());
    }
}

fn close(tables: &Tables, event: &Event<'_>, _: (), _: &mut Emitter) -> Result<(), Fault> {
    let name = event.stream().to_owned();
    if !tables.accounts.delete(&name) {
        return Err(Fault::new(format!("{name} is not open")));
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a mean is a float; the other languages round the same way"
)]
fn audit(tables: &Tables, _: &Event<'_>, _: (), _: &mut Emitter) -> Result<(), Fault> {
    let mut totals = Totals::default();
    for (_, account) in tables.accounts.rows() {
        totals.accounts += 1;
        totals.sum += account.balance;
    }
    if totals.accounts > 0 {
        totals.mean = totals.sum as f64 / totals.accounts as f64;
    }
    tables.totals.set(&(), &totals);
    Ok(())
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    #[test]
    fn it_counts_alerts_and_audits_however_it_is_cut() {
        let mut events: Vec<TestEvent> = (0..60u32)
            .map(|n| {
                let kind = if n % 3 == 0 { "withdraw" } else { "deposit" };
                TestEvent::new(&format!("account-{}", n % 5), kind, (n * 7).to_string())
            })
            .collect();
        events.push(TestEvent::new("account-4", "close", ""));
        events.push(TestEvent::new("audit", "run", ""));
        let outcome = testing::check::<Balance>(&events).unwrap();
        let totals = outcome.get(&Balance::tables().totals, &()).unwrap();
        assert_eq!(totals.accounts, 4);
        assert_eq!(outcome.len(), 5);
        assert!(outcome.emits.iter().any(|emitted| emitted.source == 0));
        let text = String::from_utf8(outcome.emits[0].payload.clone()).unwrap();
        assert!(text.starts_with("account-"), "{text}");
    }

    #[test]
    fn an_account_that_is_not_open_cannot_be_closed() {
        let failure =
            testing::check::<Balance>(&[TestEvent::new("account-1", "close", "")]).unwrap_err();
        assert!(failure.to_string().contains("account-1 is not open"));
    }
}
