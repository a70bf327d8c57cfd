//! A validator that reads the accounts of the module `balance`: nobody withdraws what is not there.

use truthdb_sdk::prelude::*;

truthdb_sdk::record! {
    /// A row of the table `accounts` of the module `balance`.
    #[derive(Debug, Clone, Default)]
    pub struct Account {
        /// Deposits less withdrawals.
        pub balance: i64,
        /// How many of them there were.
        pub movements: u32,
    }
}

/// The amount is no number.
const NO_AMOUNT: u32 = 1;
/// The account does not hold so much.
const NOT_COVERED: u32 = 2;

truthdb_sdk::validator! {
    /// Refuses withdrawals that are not covered.
    pub Covered = "covered";
    tables {
        accounts: Table<String, Account> = 1 of "balance",
    }
    on "account-*" / "deposit" (String) => deposit;
    on "account-*" / "withdraw" (String) => withdraw;
}

fn deposit(_: &Tables, _: &Event<'_>, amount: String) -> Result<(), Rejection> {
    parse(&amount).map(|_| ())
}

fn withdraw(tables: &Tables, event: &Event<'_>, amount: String) -> Result<(), Rejection> {
    let amount = parse(&amount)?;
    let name = event.stream().to_owned();
    let mut balance = tables.accounts.get(&name).unwrap_or_default().balance;
    // What comes earlier in the same batch is in no table yet.
    for earlier in event.earlier().filter(|earlier| earlier.stream() == name) {
        let moved = earlier.decode::<String>().map(|text| parse(&text));
        let moved = moved.ok().and_then(Result::ok).unwrap_or(0);
        balance += match earlier.event_type() {
            "deposit" => moved,
            _ => -moved,
        };
    }
    if amount > balance {
        return Err(Rejection::new(
            NOT_COVERED,
            format!("{name} holds {balance}, not {amount}"),
        ));
    }
    Ok(())
}

fn parse(amount: &str) -> Result<i64, Rejection> {
    let amount: u32 = amount
        .parse()
        .map_err(|_| Rejection::new(NO_AMOUNT, format!("{amount:?} is no amount")))?;
    Ok(amount.into())
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    #[test]
    fn what_comes_earlier_in_the_batch_counts() {
        let event = |kind, amount| TestEvent::new("account-1", kind, amount);
        let verdicts = testing::validate::<Covered>(
            &[],
            &[
                event("withdraw", "1"),
                event("deposit", "5"),
                event("withdraw", "3"),
                event("withdraw", "3"),
                event("deposit", "five"),
            ],
        );
        let codes: Vec<_> = verdicts
            .iter()
            .map(|verdict| verdict.as_ref().err().map(|rejection| rejection.code))
            .collect();
        // Of what is refused nothing is appended: the first withdrawal counts for the later ones too.
        assert_eq!(
            codes,
            [
                Some(NOT_COVERED),
                None,
                None,
                Some(NOT_COVERED),
                Some(NO_AMOUNT)
            ]
        );
    }
}
