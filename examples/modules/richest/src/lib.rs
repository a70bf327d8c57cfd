//! A query operator over the accounts of the module `balance`: the richest of them, over all
//! partitions. The argument is how many, as a decimal number.

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

/// Rows looked at in one step, so that no step takes long.
const STEP_ROWS: usize = 1000;
/// Most accounts of an answer.
const ACCOUNTS_MAX: usize = 100;

truthdb_sdk::query! {
    /// The richest accounts: rows of name and balance (8 bytes, little-endian).
    pub Richest = "richest";
    tables {
        accounts: Table<String, Account> = 1 of "balance",
    }
    run => run;
    merge => merge;
}

/// Each step gives the best of its own rows; the merge picks from all of them.
fn run(tables: &Tables, _: Moment, arguments: &[u8], resume: &[u8]) -> Result<Answer, Fault> {
    let count = count(arguments)?;
    let last = String::from_utf8(resume.to_vec()).map_err(|_| Fault::new("the token is wrong"))?;
    let rows = match last.as_str() {
        "" => tables.accounts.rows(),
        _ => tables.accounts.range((
            std::ops::Bound::Excluded(last.clone()),
            std::ops::Bound::Unbounded,
        )),
    };
    let mut seen: Vec<(String, i64)> = rows
        .limit(STEP_ROWS)
        .map(|(name, account)| (name, account.balance))
        .collect();
    let last = seen.last().map(|(name, _)| name.clone());
    let more = seen.len() == STEP_ROWS;
    best(&mut seen, count);
    let mut page = page(&seen);
    page.more = more;
    let resume = last.filter(|_| more).unwrap_or_default().into_bytes();
    Ok(Answer { rows: page, resume })
}

fn merge(arguments: &[u8], parts: Vec<Page>) -> Result<Page, Fault> {
    let count = count(arguments)?;
    let mut all = Vec::new();
    for (name, mut balance) in parts.iter().flat_map(Page::rows) {
        let name = String::from_utf8_lossy(name).into_owned();
        all.push((name, <i64 as Value>::decode(&mut balance).unwrap_or(0)));
    }
    best(&mut all, count);
    Ok(page(&all))
}

fn count(arguments: &[u8]) -> Result<usize, Fault> {
    std::str::from_utf8(arguments)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|count| (1..=ACCOUNTS_MAX).contains(count))
        .ok_or_else(|| Fault::new(format!("say how many accounts, 1 to {ACCOUNTS_MAX}")))
}

/// The highest balances; names decide between equals.
fn best(accounts: &mut Vec<(String, i64)>, count: usize) {
    accounts.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    accounts.truncate(count);
}

fn page(accounts: &[(String, i64)]) -> Page {
    let mut page = Page::default();
    for (name, balance) in accounts {
        page.push(name.as_bytes(), &balance.to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing;

    use super::*;

    #[test]
    fn arguments_are_checked_and_nothing_is_a_good_answer() {
        let at = Moment {
            sequence: 1,
            time: 1,
        };
        let page = testing::query::<Richest>(&[&[], &[]], at, b"3").unwrap();
        assert_eq!(page.rows().count(), 0);
        for wrong in ["", "0", "101", "three"] {
            testing::query::<Richest>(&[&[]], at, wrong.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn balance_decides_then_the_name() {
        let mut accounts = vec![
            ("b".to_owned(), 1),
            ("a".to_owned(), 1),
            ("c".to_owned(), 5),
        ];
        best(&mut accounts, 2);
        assert_eq!(accounts, [("c".to_owned(), 5), ("a".to_owned(), 1)]);
    }
}
