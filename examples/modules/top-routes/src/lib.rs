//! A query operator over the table `routes` of the module `delays`: the routes with the highest mean
//! delay in a window of days, over all partitions.
//!
//! The argument is `N FIRST LAST [LEAST]`: how many routes, the first and the last day (UTC, such as
//! `2013-07-01`), and the least number of departures that make a mean worth something (1 if not given).

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::Serialize;
use truthdb_sdk::prelude::*;

truthdb_sdk::record! {
    /// A row of the table `routes` of the module `delays`.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct RouteDay {
        /// Departures of the day.
        pub departures: u32,
        /// The sum of their delays.
        pub delay_minutes: i32,
    }
}

/// Rows looked at in one step, so that no step takes long.
const STEP_ROWS: usize = 2000;
/// Most routes of an answer.
const ROUTES_MAX: usize = 100;

truthdb_sdk::query! {
    /// The most delayed routes of a window: rows of a route, such as `EWR-IAH`, and JSON.
    pub TopRoutes = "top-routes";
    tables {
        routes: Table<(String, String, String), RouteDay> = 1 of "delays",
    }
    run => run;
    merge => merge;
}

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    count: usize,
    first: String,
    last: String,
    least: u64,
}

/// What a row of the answer says.
#[derive(Debug, Serialize)]
struct Route {
    departures: u64,
    mean_delay: f64,
}

/// Departures and the sum of their delays.
type Sums = BTreeMap<Vec<u8>, (u64, i64)>;

/// Each step gives sums by route of the rows it has looked at; the merge adds them up.
fn run(tables: &Tables, _: Moment, arguments: &[u8], resume: &[u8]) -> Result<Answer, Fault> {
    let question = Question::parse(arguments)?;
    let start = if resume.is_empty() {
        Bound::Included((question.first, String::new(), String::new()))
    } else {
        let mut bytes = resume;
        let last = <(String, String, String)>::decode_key(&mut bytes);
        Bound::Excluded(last.ok_or_else(|| Fault::new("the token is wrong"))?)
    };
    let mut sums = Sums::new();
    let mut last_key = None;
    let mut looked = 0;
    for (key, row) in tables
        .routes
        .range((start, Bound::Unbounded))
        .limit(STEP_ROWS)
    {
        looked += 1;
        if key.0 > question.last {
            last_key = None;
            break;
        }
        let route = format!("{}-{}", key.1, key.2).into_bytes();
        let sum = sums.entry(route).or_default();
        sum.0 += u64::from(row.departures);
        sum.1 += i64::from(row.delay_minutes);
        last_key = Some(key);
    }
    let mut rows = Page::default();
    for (route, (departures, minutes)) in &sums {
        let mut value = departures.to_le_bytes().to_vec();
        value.extend_from_slice(&minutes.to_le_bytes());
        rows.push(route, &value);
    }
    let mut resume = Vec::new();
    if let Some(key) = last_key.filter(|_| looked == STEP_ROWS) {
        key.encode_key(&mut resume);
        rows.more = true;
    }
    Ok(Answer { rows, resume })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of flights are far below 2^53"
)]
fn merge(arguments: &[u8], parts: Vec<Page>) -> Result<Page, Fault> {
    let question = Question::parse(arguments)?;
    let mut sums = Sums::new();
    for (route, mut value) in parts.iter().flat_map(Page::rows) {
        let (departures, minutes) = <(u64, i64)>::decode(&mut value)
            .ok_or_else(|| Fault::new("a part of the answer is damaged"))?;
        let sum = sums.entry(route.to_vec()).or_default();
        sum.0 += departures;
        sum.1 += minutes;
    }
    let mut routes: Vec<(Vec<u8>, Route)> = sums
        .into_iter()
        .filter(|(_, (departures, _))| *departures >= question.least)
        .map(|(name, (departures, minutes))| {
            let mean_delay = minutes as f64 / departures as f64;
            (
                name,
                Route {
                    departures,
                    mean_delay,
                },
            )
        })
        .collect();
    // The sort keeps the order of names among equals.
    routes.sort_by(|one, other| other.1.mean_delay.total_cmp(&one.1.mean_delay));
    routes.truncate(question.count);
    let mut page = Page::default();
    for (name, route) in &routes {
        let value = serde_json::to_vec(route).map_err(|error| Fault::new(error.to_string()))?;
        page.push(name, &value);
    }
    Ok(page)
}

impl Question {
    fn parse(arguments: &[u8]) -> Result<Self, Fault> {
        let usage = || {
            Fault::new(format!(
                "ask `N FIRST LAST [LEAST]`: 1 to {ROUTES_MAX} routes, the first and the last day such as \
                 2013-07-01, the least number of departures"
            ))
        };
        let text = std::str::from_utf8(arguments).map_err(|_| usage())?;
        let parts: Vec<&str> = text.split_ascii_whitespace().collect();
        let (count, first, last, least) = match parts[..] {
            [count, first, last] => (count, first, last, "1"),
            [count, first, last, least] => (count, first, last, least),
            _ => return Err(usage()),
        };
        let count: usize = count.parse().map_err(|_| usage())?;
        let least: u64 = least.parse().map_err(|_| usage())?;
        let are_days = is_day(first) && is_day(last) && first <= last;
        if !(1..=ROUTES_MAX).contains(&count) || least == 0 || !are_days {
            return Err(usage());
        }
        Ok(Self {
            count,
            first: first.to_owned(),
            last: last.to_owned(),
            least,
        })
    }
}

/// Whether it looks like `2013-07-04`. A day that no month has finds nothing, which is true of it.
fn is_day(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, Outcome, TestEvent};

    use super::*;

    /// A reducer that makes the rows: the tests of this crate do not know the crate of `delays`.
    mod delays {
        use truthdb_sdk::prelude::*;

        use super::RouteDay;

        truthdb_sdk::reducer! {
            /// Rows as the payload says: day, route, departures, minutes.
            pub Delays = "delays";
            tables { routes: Table<(String, String, String), RouteDay> = 1 }
            on "*" / "row" (String) => row;
        }

        fn row(tables: &Tables, _: &Event<'_>, text: String) -> Result<(), Fault> {
            let parts: Vec<&str> = text.split(' ').collect();
            let key = (
                parts[0].to_owned(),
                parts[1].to_owned(),
                parts[2].to_owned(),
            );
            let number = |at: usize| parts[at].parse::<i32>().unwrap();
            let row = RouteDay {
                departures: number(3).unsigned_abs(),
                delay_minutes: number(4),
            };
            tables.routes.set(&key, &row);
            Ok(())
        }
    }

    const AT: Moment = Moment {
        sequence: 1,
        time: 1,
    };

    fn outcome(rows: &[String]) -> Outcome {
        let events: Vec<TestEvent> = rows
            .iter()
            .map(|row| TestEvent::new("x", "row", row))
            .collect();
        testing::fold::<delays::Delays>(&events).unwrap()
    }

    fn ask(partitions: &[&[&Outcome]], arguments: &str) -> Vec<(String, String)> {
        let page = testing::query::<TopRoutes>(partitions, AT, arguments.as_bytes()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        page.rows().map(|(k, v)| (text(k), text(v))).collect()
    }

    #[test]
    fn windows_are_summed_over_days_steps_and_partitions() {
        // More rows than one step looks at, most of them outside of the window.
        let mut one: Vec<String> = (0..2 * STEP_ROWS + 10)
            .map(|n| format!("2013-{:02}-{:02} EWR A{n} 1 1", 1 + n % 6, 1 + n % 28))
            .collect();
        one.push("2013-07-01 EWR IAH 2 10".to_owned());
        one.push("2013-07-02 EWR IAH 2 30".to_owned());
        one.push("2013-07-03 EWR IAH 2 9000".to_owned());
        let two = [
            "2013-07-01 EWR IAH 4 0".to_owned(),
            "2013-07-02 JFK LAX 1 7".to_owned(),
        ];
        let (one, two) = (outcome(&one), outcome(&two));
        let partitions: [&[&Outcome]; 2] = [&[&one], &[&two]];
        let ewr = (
            "EWR-IAH".to_owned(),
            r#"{"departures":8,"mean_delay":5.0}"#.to_owned(),
        );
        let jfk = (
            "JFK-LAX".to_owned(),
            r#"{"departures":1,"mean_delay":7.0}"#.to_owned(),
        );
        let window = "2013-07-01 2013-07-02";
        assert_eq!(
            ask(&partitions, &format!("5 {window}")),
            [jfk.clone(), ewr.clone()]
        );
        assert_eq!(ask(&partitions, &format!("1 {window}")), [jfk]);
        assert_eq!(ask(&partitions, &format!("5 {window} 2")), [ewr]);
        assert_eq!(ask(&partitions, "100 2013-01-01 2013-06-30").len(), 100);
    }

    #[test]
    fn arguments_are_checked() {
        for wrong in [
            "",
            "5",
            "0 2013-01-01 2013-01-02",
            "101 2013-01-01 2013-01-02",
            "5 2013-01-02 2013-01-01",
            "5 2013-1-1 2013-01-02",
            "5 2013-01-01 2013-01-02 0",
            "5 2013-01-01 2013-01-02 1 1",
        ] {
            testing::query::<TopRoutes>(&[&[]], AT, wrong.as_bytes()).unwrap_err();
        }
        testing::query::<TopRoutes>(&[&[]], AT, &[255]).unwrap_err();
    }
}
