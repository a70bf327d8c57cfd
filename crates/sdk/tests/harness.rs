//! The native harness, with modules that keep the rules and modules that do not.

use truthdb_sdk::prelude::*;
use truthdb_sdk::testing::{self, Failure, TestEvent};

mod ledger {
    use truthdb_sdk::prelude::*;

    truthdb_sdk::record! {
        /// A balance and how it came about.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Account {
            /// The sum.
            pub balance: i64,
            /// Movements.
            pub movements: u32,
        }
    }

    truthdb_sdk::processor! {
        /// Balances of accounts, and an alert when one is negative.
        pub Ledger = "ledger";
        tables {
            /// By account and currency.
            accounts: Table<(String, String), Account> = 1,
            by_movements: Table<(u32, String), ()> = 2,
        }
        on "account-*" / "moved" (String) => moved;
        on "account-*" / "closed" (()) => closed;
    }

    fn moved(
        tables: &Tables,
        event: &Event<'_>,
        amount: String,
        out: &mut Emitter,
    ) -> Result<(), Fault> {
        let amount: i64 = amount
            .parse()
            .map_err(|_| Fault::new("the amount is no number"))?;
        let currency = event.metadata("currency").unwrap_or("EUR");
        let key = (event.stream().to_owned(), currency.to_owned());
        tables.accounts.update(&key, |account| {
            let mut account: Account = account.unwrap_or_default();
            account.balance += amount;
            account.movements += 1;
            let name = key.0.clone();
            tables
                .by_movements
                .delete(&(account.movements - 1, name.clone()));
            tables.by_movements.set(&(account.movements, name), &());
            if account.balance < 0 {
                let text = account.balance.to_string();
                out.emit("alerts", "overdrawn", "text/plain", text.as_bytes());
            }
            Some(account)
        });
        Ok(())
    }

    fn closed(tables: &Tables, event: &Event<'_>, _: (), _: &mut Emitter) -> Result<(), Fault> {
        let rows: Vec<_> = tables
            .accounts
            .prefix(&event.stream().to_owned())
            .map(|(key, _)| key)
            .collect();
        for key in &rows {
            tables.accounts.delete(key);
        }
        Ok(())
    }
}

mod impure {
    use std::sync::atomic::{AtomicU64, Ordering};

    use truthdb_sdk::prelude::*;

    static CALLS: AtomicU64 = AtomicU64::new(0);

    truthdb_sdk::reducer! {
        /// Counts in a global what it should count in its table.
        pub Impure = "impure";
        tables { counts: Table<(), u64> = 1 }
        on "*" / "*" (()) => count;
    }

    fn count(tables: &Tables, _: &Event<'_>, _: ()) -> Result<(), Fault> {
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        tables.counts.set(&(), &calls);
        Ok(())
    }
}

mod peeking {
    use truthdb_sdk::prelude::*;

    truthdb_sdk::reducer! {
        /// Lets the place in the batch into its table.
        pub Peeking = "peeking";
        tables { places: Table<u64, u64> = 1 }
        on "*" / "*" (()) => note;
    }

    fn note(tables: &Tables, event: &Event<'_>, _: ()) -> Result<(), Fault> {
        tables
            .places
            .set(&event.sequence(), &(event.index() as u64));
        Ok(())
    }
}

mod covered {
    use truthdb_sdk::prelude::*;

    use super::ledger::Account;

    truthdb_sdk::validator! {
        /// Nobody withdraws what is not there.
        pub Covered = "covered";
        tables {
            accounts: Table<(String, String), Account> = 1 of "ledger",
        }
        on "account-*" / "moved" (String) => moved;
    }

    fn moved(tables: &Tables, event: &Event<'_>, amount: String) -> Result<(), Rejection> {
        let amount: i64 = amount
            .parse()
            .map_err(|_| Rejection::new(1, "the amount is no number"))?;
        let key = (event.stream().to_owned(), "EUR".to_owned());
        let balance = tables.accounts.get(&key).unwrap_or_default().balance;
        let of_batch: i64 = event
            .earlier()
            .filter(|earlier| earlier.stream() == event.stream())
            .filter_map(|earlier| earlier.decode::<String>().ok()?.parse::<i64>().ok())
            .sum();
        if balance + of_batch + amount < 0 {
            return Err(Rejection::new(2, "there is not so much"));
        }
        Ok(())
    }
}

mod top {
    use truthdb_sdk::prelude::*;

    truthdb_sdk::query! {
        /// The accounts that moved most, two a step.
        pub Top = "top";
        tables {
            by_movements: Table<(u32, String), ()> = 2 of "ledger",
        }
        run => run;
        merge => merge;
    }

    fn run(tables: &Tables, _: Moment, _: &[u8], resume: &[u8]) -> Result<Answer, Fault> {
        let mut resume = resume;
        let rows = match <(u32, String) as Key>::decode(&mut resume) {
            Some(last) => tables.by_movements.range(..last),
            None => tables.by_movements.rows(),
        };
        let mut answer = Answer::default();
        for (key, ()) in rows.reverse().limit(2) {
            answer.rows.push(key.1.as_bytes(), &key.0.to_le_bytes());
            answer.resume.clear();
            Key::encode(&key, &mut answer.resume);
        }
        answer.rows.more = answer.rows.rows().count() == 2;
        Ok(answer)
    }

    fn merge(arguments: &[u8], parts: Vec<Page>) -> Result<Page, Fault> {
        let limit = usize::from(
            *arguments
                .first()
                .ok_or_else(|| Fault::new("say how many"))?,
        );
        let mut rows: Vec<_> = parts.iter().flat_map(Page::rows).collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut page = Page::default();
        for (key, value) in rows.into_iter().take(limit) {
            page.push(key, value);
        }
        Ok(page)
    }
}

fn moved(account: u32, amount: i64) -> TestEvent {
    TestEvent::new(&format!("account-{account}"), "moved", amount.to_string())
}

fn history() -> Vec<TestEvent> {
    let mut events: Vec<_> = (0..100u32)
        .map(|n| moved(n % 7, i64::from(n % 11) * 10 - 40))
        .collect();
    events.push(TestEvent::new("account-3", "closed", ""));
    events.push(TestEvent::new("elsewhere", "moved", "no number"));
    events
}

#[test]
fn a_pure_module_passes() {
    let outcome = testing::check::<ledger::Ledger>(&history()).unwrap();
    let account = |n: u32| (format!("account-{n}"), "EUR".to_owned());
    let tables = ledger::Ledger::tables();
    let first = outcome.get(&tables.accounts, &account(0)).unwrap();
    assert_eq!(first.movements, 15);
    assert_eq!(outcome.get(&tables.accounts, &account(3)), None);
    assert!(!outcome.emits.is_empty());
    let source = outcome.emits[0].source;
    assert!(history()[..source].len() < 100);
}

#[test]
fn a_module_with_a_global_is_caught() {
    let failure = testing::check::<impure::Impure>(&history()).unwrap_err();
    assert!(matches!(failure, Failure::Differs { .. }), "{failure}");
    assert!(failure.to_string().contains("table counts"), "{failure}");
}

#[test]
fn a_module_that_looks_at_its_batch_is_caught() {
    let failure = testing::check::<peeking::Peeking>(&history()).unwrap_err();
    assert!(failure.to_string().contains("batches of 1"), "{failure}");
}

#[test]
fn a_handler_that_fails_halts_and_names_the_batch() {
    let events = [moved(1, 5), TestEvent::new("account-1", "moved", "five")];
    let failure = testing::check::<ledger::Ledger>(&events).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "halted in the batch that begins with event 0: the amount is no number"
    );
    let events = [TestEvent::new("account-1", "moved", b"\xff")];
    let failure = testing::fold::<ledger::Ledger>(&events).unwrap_err();
    assert!(failure.to_string().contains("event 1 (moved in account-1)"));
}

#[test]
fn a_validator_reads_the_tables_of_its_owner_and_earlier_events_of_the_batch() {
    let ledger = testing::fold::<ledger::Ledger>(&[moved(1, 100)]).unwrap();
    let verdicts = testing::validate::<covered::Covered>(
        &[&ledger],
        &[
            moved(1, -60),
            moved(1, -60),
            moved(2, -1),
            TestEvent::new("account-1", "moved", b"\xff"),
            TestEvent::new("other", "anything", ""),
        ],
    );
    let codes: Vec<Option<u32>> = verdicts
        .iter()
        .map(|verdict| verdict.as_ref().err().map(|rejection| rejection.code))
        .collect();
    assert_eq!(
        codes,
        [None, Some(2), Some(2), Some(Rejection::BAD_PAYLOAD), None]
    );
}

#[test]
fn a_query_goes_on_step_by_step_and_merges_partitions() {
    let of = |accounts: std::ops::Range<u32>| {
        let events: Vec<_> = accounts
            .flat_map(|n| std::iter::repeat_n(moved(n, 1), n as usize))
            .collect();
        testing::fold::<ledger::Ledger>(&events).unwrap()
    };
    let (one, other) = (of(1..6), of(6..9));
    let at = Moment {
        sequence: 1,
        time: 1,
    };
    let partitions: [&[&testing::Outcome]; 2] = [&[&one], &[&other]];
    let page = testing::query::<top::Top>(&partitions, at, &[4]).unwrap();
    let names: Vec<_> = page
        .rows()
        .map(|(key, _)| String::from_utf8(key.to_vec()).unwrap())
        .collect();
    assert_eq!(names, ["account-8", "account-7", "account-6", "account-5"]);
    let fault = testing::query::<top::Top>(&partitions, at, &[]).unwrap_err();
    assert_eq!(fault.reason(), "say how many");
}

#[test]
fn a_validator_cannot_write() {
    let written = std::panic::catch_unwind(|| {
        testing::validate::<covered::Covered>(&[], &[]);
        covered::Covered::tables()
            .accounts
            .set(&(String::new(), String::new()), &ledger::Account::default());
    });
    assert!(written.is_err());
}

#[test]
fn manifests_say_what_was_declared() {
    let manifest = ledger::Ledger::manifest();
    assert_eq!(manifest.name, "ledger");
    assert_eq!(manifest.tables[1].name, "by-movements");
    assert_eq!(manifest.tables[1].version, 2);
    assert_eq!(manifest.subscriptions[0].stream, "account-*");
    assert_eq!(covered::Covered::manifest().tables[0].module, "ledger");
    assert!(top::Top::manifest().subscriptions.is_empty());
}
