//! The decision table of recovery, as data: what is seen where a header is expected, and what is
//! done then. [`crate::recover_segment`] carries it out.

/// What was seen where a header is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The block is zero.
    pub blank: bool,
    /// Bytes, checksum and version are those of a header.
    pub header_ok: bool,
    /// The header was written for this database, partition, segment and offset.
    pub mine: bool,
    /// Sequence and previous checksum are those that follow.
    pub chained: bool,
    /// Table and events are what the header says.
    pub body_ok: bool,
    /// What belongs here was durable: a later header says so, or a successor exists.
    pub evidence: bool,
    /// Anything but zeros follows.
    pub later: bool,
}

impl Observation {
    fn bits(self) -> [bool; 7] {
        let Observation {
            blank,
            header_ok,
            mine,
            chained,
            body_ok,
            evidence,
            later,
        } = self;
        [blank, header_ok, mine, chained, body_ok, evidence, later]
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The batch or mark is part of the log.
    Accept,
    /// The log ends here, and nothing follows.
    EndOfLog,
    /// The log ends here; the rest is a torn tail, which is zeroed and reported.
    CutTornTail,
    /// Acknowledged data is damaged or in the wrong place: the partition is not opened.
    Refuse,
}

/// One line of the decision table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Short name, for reports.
    pub name: &'static str,
    /// What must hold, in the order of [`Observation`]'s fields; `None` means either.
    pub when: [Option<bool>; 7],
    /// What is done.
    pub decision: Decision,
}

const Y: Option<bool> = Some(true);
const N: Option<bool> = Some(false);
const A: Option<bool> = None;

/// The decision table. Exactly one line applies to any observation.
///
/// ```text
/// blank header_ok mine chained body_ok evidence later | decision
///   1       -      -      -       -       0       0   | end of log
///   1       -      -      -       -       0       1   | cut: a write in flight is missing
///   1       -      -      -       -       1       -   | refuse: durable data is gone
///   0       0      -      -       -       0       -   | cut: torn header
///   0       0      -      -       -       1       -   | refuse: durable header is damaged
///   0       1      0      -       -       -       -   | refuse: a block of another place
///   0       1      1      0       -       0       -   | cut: what comes before it was lost
///   0       1      1      0       -       1       -   | refuse: durable data before it is gone
///   0       1      1      1       0       0       -   | cut: torn body
///   0       1      1      1       0       1       -   | refuse: durable body is damaged
///   0       1      1      1       1       -       -   | accept
/// ```
pub const RULES: [Rule; 11] = [
    rule("end of log", [Y, A, A, A, A, N, N], Decision::EndOfLog),
    rule(
        "missing write before later ones",
        [Y, A, A, A, A, N, Y],
        Decision::CutTornTail,
    ),
    rule(
        "zeros in place of durable data",
        [Y, A, A, A, A, Y, A],
        Decision::Refuse,
    ),
    rule("torn header", [N, N, A, A, A, N, A], Decision::CutTornTail),
    rule(
        "damaged durable header",
        [N, N, A, A, A, Y, A],
        Decision::Refuse,
    ),
    rule(
        "block of another place",
        [N, Y, N, A, A, A, A],
        Decision::Refuse,
    ),
    rule(
        "orphan of a lost write",
        [N, Y, Y, N, A, N, A],
        Decision::CutTornTail,
    ),
    rule(
        "durable data lost before it",
        [N, Y, Y, N, A, Y, A],
        Decision::Refuse,
    ),
    rule("torn body", [N, Y, Y, Y, N, N, A], Decision::CutTornTail),
    rule(
        "damaged durable body",
        [N, Y, Y, Y, N, Y, A],
        Decision::Refuse,
    ),
    rule("whole", [N, Y, Y, Y, Y, A, A], Decision::Accept),
];

const fn rule(name: &'static str, when: [Option<bool>; 7], decision: Decision) -> Rule {
    Rule {
        name,
        when,
        decision,
    }
}

/// The line of the table that applies.
pub fn decide(observation: Observation) -> &'static Rule {
    let bits = observation.bits();
    let applies = |rule: &&Rule| {
        rule.when
            .iter()
            .zip(bits)
            .all(|(when, bit)| when.is_none_or(|expected| expected == bit))
    };
    RULES
        .iter()
        .find(applies)
        .expect("the table covers every observation")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_rule_applies_to_every_observation() {
        for bits in 0u32..1 << 7 {
            let bit = |index: u32| bits >> index & 1 == 1;
            let observation = Observation {
                blank: bit(0),
                header_ok: bit(1),
                mine: bit(2),
                chained: bit(3),
                body_ok: bit(4),
                evidence: bit(5),
                later: bit(6),
            };
            let applies = |rule: &&Rule| {
                let pairs = rule.when.iter().zip(observation.bits());
                pairs
                    .into_iter()
                    .all(|(when, bit)| when.is_none() || *when == Some(bit))
            };
            let names: Vec<_> = RULES.iter().filter(applies).map(|rule| rule.name).collect();
            assert_eq!(names.len(), 1, "{observation:?}: {names:?}");
            assert_eq!(decide(observation).name, names[0]);
            check_principles(observation, decide(observation).decision);
        }
    }

    /// The table's meaning, said without the table.
    fn check_principles(observation: Observation, decision: Decision) {
        let Observation {
            blank,
            header_ok,
            mine,
            chained,
            body_ok,
            evidence,
            later,
        } = observation;
        let whole = !blank && header_ok && mine && chained && body_ok;
        assert_eq!(decision == Decision::Accept, whole, "{observation:?}");
        if evidence && !whole {
            assert_eq!(decision, Decision::Refuse, "{observation:?}");
        }
        if decision == Decision::EndOfLog {
            assert!(blank && !evidence && !later, "{observation:?}");
        }
        if decision == Decision::CutTornTail {
            assert!(!evidence, "{observation:?}");
        }
    }
}
