//! The catalogue of a partition: what its control events say about modules, and nothing else.
//!
//! A pure function of the control events up to a sequence. Everything that decides what a module's
//! state is (which code is given which events, what is skipped, where guests begin anew) is read
//! from here, so that every replay decides alike.
//!
//! A *line* is a set of tables and the codes that fold into it one after another: a rebuild begins a
//! new line, `continue` and `migrate` go on in the one there is. It is named by the generation that
//! began it.

use std::collections::BTreeMap;
use std::sync::Arc;

use truthdb_event::EventRef;
use truthdb_module::{Limits, Manifest, ModuleKind, WasiProfile};

use crate::control::{
    CONTROL_TYPE, Fact, MODULE_STREAM_PREFIX, SNAPSHOT_STREAM, decode_control, limits_of, mode_of,
    unhex, wasi_of,
};
use crate::request::{ActivationMode, ModuleHash};

/// Guests are given fresh memory whenever the sequence passes a multiple of this.
pub const EPOCH_EVENTS: u64 = 4096;

/// A published code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) bytes: u64,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) published_at: u64,
}

/// A generation of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u32,
    pub(crate) hash: ModuleHash,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) limits: Limits,
    pub(crate) wasi: WasiProfile,
    pub(crate) semantics_id: [u8; 32],
    pub(crate) mode: ActivationMode,
    /// The generation that began the tables.
    pub(crate) line: u32,
    pub(crate) activated_at: u64,
    /// First sequence that this code is given.
    pub(crate) from_sequence: u64,
    /// First sequence at which it answers; none while it is rebuilt beside another.
    pub(crate) current_from: Option<u64>,
    /// Last sequence at which it answers.
    pub(crate) retired_at: Option<u64>,
}

/// A stop that is recorded and not lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HaltFact {
    pub(crate) generation: u32,
    pub(crate) sequence: u64,
    pub(crate) reason: String,
}

/// A state checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckpointFact {
    pub(crate) generation: u32,
    pub(crate) sequence: u64,
    pub(crate) fingerprint: [u8; 32],
}

/// What happened to a module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Life {
    /// Ascending by number.
    pub(crate) generations: Vec<Generation>,
    /// Generations, and ranges that their tables' codes are not given.
    pub(crate) skips: Vec<(u32, u64, u64)>,
    pub(crate) halts: Vec<HaltFact>,
    pub(crate) checkpoints: Vec<CheckpointFact>,
}

/// A decision, for the partitions that copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) id: String,
    pub(crate) module: String,
    pub(crate) fact: Fact,
}

/// See the module's description.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Catalogue {
    pub(crate) modules: BTreeMap<String, Life>,
    pub(crate) codes: BTreeMap<ModuleHash, Code>,
    /// Sequences of snapshot marks, ascending.
    pub(crate) marks: Vec<u64>,
    /// In the order of the log.
    pub(crate) decisions: Vec<Decision>,
    /// Sequence of the first control event about each name of a module.
    pub(crate) first_facts: BTreeMap<String, u64>,
    /// Control events that this program does not understand, by sequence.
    pub(crate) unknown: Vec<u64>,
}

/// One code of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// First sequence that it is given.
    pub(crate) from_sequence: u64,
    pub(crate) generation: u32,
    pub(crate) hash: ModuleHash,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) limits: Limits,
    pub(crate) wasi: WasiProfile,
    pub(crate) semantics_id: [u8; 32],
    pub(crate) migrate: bool,
}

/// How the tables of a line are made from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LineSpec {
    pub(crate) module: String,
    pub(crate) line: u32,
    /// At least one, ascending by `from_sequence`.
    pub(crate) steps: Vec<Step>,
    pub(crate) skips: Vec<(u64, u64)>,
    /// Marks at which guests begin anew.
    pub(crate) marks: Arc<Vec<u64>>,
    /// Ranges of source sequences whose derived events are appended, ascending: a generation's turn.
    pub(crate) turns: Vec<(u64, u64)>,
}

impl LineSpec {
    /// The code that is given a sequence.
    pub(crate) fn step_at(&self, sequence: u64) -> usize {
        self.steps
            .partition_point(|step| step.from_sequence <= sequence)
            .saturating_sub(1)
    }

    /// Where the guest's memory began that a batch with this first sequence is given to: the start
    /// of the epoch, or the mark or change of code after it. A function of the log alone.
    pub(crate) fn memory_start(&self, first_sequence: u64) -> u64 {
        let epoch = first_sequence - first_sequence % EPOCH_EVENTS;
        let marks = self.marks.partition_point(|mark| *mark < first_sequence);
        let mark = marks.checked_sub(1).map_or(0, |last| self.marks[last] + 1);
        let code = self.steps[self.step_at(first_sequence)].from_sequence;
        let code = if code <= first_sequence { code } else { 0 };
        epoch.max(mark).max(code)
    }

    /// First sequence that any code of it is given.
    pub(crate) fn first_sequence(&self) -> u64 {
        self.steps.first().map_or(1, |step| step.from_sequence)
    }

    pub(crate) fn is_skipped(&self, sequence: u64) -> bool {
        self.skips
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&sequence))
    }

    /// Whether derived events of this source batch are appended.
    pub(crate) fn emits_at(&self, sequence: u64) -> bool {
        self.turns
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&sequence))
    }
}

/// Whether an event is a control event.
pub(crate) fn is_control(event: &EventRef<'_>) -> bool {
    event.event_type() == CONTROL_TYPE
}

impl Catalogue {
    /// Takes the control event with this sequence.
    pub(crate) fn apply(&mut self, sequence: u64, event: &EventRef<'_>) {
        let stream = event.stream();
        if let Some(module) = stream.strip_prefix(MODULE_STREAM_PREFIX)
            && !self.first_facts.contains_key(module)
        {
            self.first_facts.insert(module.to_owned(), sequence);
        }
        let Some(control) = decode_control(event.payload()) else {
            self.unknown.push(sequence);
            return;
        };
        if stream == SNAPSHOT_STREAM {
            self.marks.push(sequence);
            return;
        }
        let Some(module) = stream.strip_prefix(MODULE_STREAM_PREFIX) else {
            return;
        };
        if !self.take(sequence, module, &control.fact) {
            self.unknown.push(sequence);
            return;
        }
        if !control.decision.is_empty() {
            self.decisions.push(Decision {
                id: control.decision,
                module: module.to_owned(),
                fact: control.fact,
            });
        }
    }

    fn take(&mut self, sequence: u64, module: &str, fact: &Fact) -> bool {
        match fact {
            Fact::Published {
                hash,
                bytes,
                manifest,
            } => {
                let (Some(hash), Some(manifest)) = (unhex(hash), manifest.manifest()) else {
                    return false;
                };
                let code = Code {
                    bytes: *bytes,
                    manifest: Arc::new(manifest),
                    published_at: sequence,
                };
                self.codes.entry(hash).or_insert(code);
                self.modules.entry(module.to_owned()).or_default();
                true
            }
            Fact::Activated { .. } => self.activate(sequence, module, fact),
            Fact::Snapshot {} => false,
            _ => self
                .modules
                .get_mut(module)
                .is_some_and(|life| life.take(sequence, fact)),
        }
    }

    fn activate(&mut self, sequence: u64, module: &str, fact: &Fact) -> bool {
        let Fact::Activated {
            generation,
            hash,
            mode,
            from_sequence,
            limits,
            wasi,
            semantics_id,
            ..
        } = fact
        else {
            return false;
        };
        let known = (
            unhex(hash),
            mode_of(mode),
            wasi_of(wasi),
            unhex(semantics_id),
        );
        let (Some(hash), Some(mode), Some(wasi), Some(semantics_id)) = known else {
            return false;
        };
        let Some(code) = self.codes.get(&hash) else {
            return false;
        };
        let manifest = Arc::clone(&code.manifest);
        let life = self.modules.entry(module.to_owned()).or_default();
        let ever = !life.generations.is_empty();
        let current = life
            .current()
            .map(|current| (current.line, current.current_from.unwrap_or(0)));
        let owns_tables = manifest.kind.owns_tables();
        let from_here = from_sequence.unwrap_or(sequence + 1);
        let (line, from_sequence, current_from) = match (owns_tables, mode, current) {
            (false, ..) => (*generation, sequence + 1, Some(sequence + 1)),
            (true, ActivationMode::Rebuild, Some(_)) => (*generation, 1, None),
            (true, ActivationMode::Rebuild, None) => {
                (*generation, 1, Some(if ever { sequence } else { 0 }))
            }
            // A code that takes over at a halt takes over the turn too, but not more than that.
            (true, _, Some((line, turn))) => (line, from_here, Some(from_here.max(turn))),
            (true, _, None) => (*generation, sequence + 1, Some(sequence)),
        };
        // A generation that is rebuilt gives way to the next one that is activated.
        for older in &mut life.generations {
            if older.current_from.is_none() {
                older.retired_at.get_or_insert(sequence);
            }
        }
        if let Some(from) = current_from {
            life.retire_current(from.saturating_sub(1));
        }
        if mode != ActivationMode::Rebuild {
            life.halts.clear();
        }
        life.generations.push(Generation {
            number: *generation,
            hash,
            manifest,
            limits: limits_of(limits),
            wasi,
            semantics_id,
            mode,
            line,
            activated_at: sequence,
            from_sequence,
            current_from,
            retired_at: None,
        });
        true
    }

    /// How the tables of a line are made. `None` if there is no such line.
    pub(crate) fn line(&self, module: &str, line: u32) -> Option<LineSpec> {
        let life = self.modules.get(module)?;
        let members: Vec<&Generation> = life
            .generations
            .iter()
            .filter(|generation| generation.line == line && generation.manifest.kind.owns_tables())
            .collect();
        if members.is_empty() {
            return None;
        }
        let mut steps: Vec<Step> = Vec::new();
        for member in &members {
            // A code that took over at a halt before its own activation replaces what came after.
            steps.retain(|step| step.from_sequence < member.from_sequence);
            steps.push(Step {
                from_sequence: member.from_sequence,
                generation: member.number,
                hash: member.hash,
                manifest: Arc::clone(&member.manifest),
                limits: member.limits,
                wasi: member.wasi,
                semantics_id: member.semantics_id,
                migrate: member.mode == ActivationMode::Migrate && !steps.is_empty(),
            });
        }
        let turns = members
            .iter()
            .filter(|member| member.manifest.kind == ModuleKind::Processor)
            .filter_map(|member| {
                Some((member.current_from?, member.retired_at.unwrap_or(u64::MAX)))
            })
            .collect();
        Some(LineSpec {
            module: module.to_owned(),
            line,
            steps,
            skips: life
                .skips
                .iter()
                .filter(|(generation, ..)| members.iter().any(|m| m.number == *generation))
                .map(|(_, first, last)| (*first, *last))
                .collect(),
            marks: Arc::new(self.marks.clone()),
            turns,
        })
    }

    /// Lines that are folded on: name and line.
    pub(crate) fn active_lines(&self) -> Vec<(String, u32)> {
        let mut lines = Vec::new();
        for (name, life) in &self.modules {
            for generation in &life.generations {
                let active =
                    generation.retired_at.is_none() && generation.manifest.kind.owns_tables();
                let line = (name.clone(), generation.line);
                if active && !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        lines
    }

    /// All lines there ever were, each with the last sequence that concerns it: that before the one
    /// that took over, or the removal; the end of all if it is folded on.
    pub(crate) fn lines(&self) -> Vec<(String, u32, u64)> {
        let mut lines = Vec::new();
        for (name, life) in &self.modules {
            let mut ends = BTreeMap::new();
            for generation in &life.generations {
                if generation.manifest.kind.owns_tables() {
                    let end = ends.entry(generation.line).or_insert(0_u64);
                    *end = (*end).max(generation.retired_at.unwrap_or(u64::MAX));
                }
            }
            let named = ends
                .into_iter()
                .map(|(line, end)| (name.clone(), line, end));
            lines.extend(named);
        }
        lines
    }

    /// Validators that decide now.
    pub(crate) fn validators(&self) -> impl Iterator<Item = (&str, &Generation)> {
        self.modules.iter().filter_map(|(name, life)| {
            let current = life.current()?;
            (current.manifest.kind == ModuleKind::Validator).then_some((name.as_str(), current))
        })
    }
}

impl Life {
    /// The generation that answers at the end of the log.
    pub(crate) fn current(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .rev()
            .find(|g| g.current_from.is_some() && g.retired_at.is_none())
    }

    /// The generation that is rebuilt beside the current one.
    pub(crate) fn shadow(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .rev()
            .find(|g| g.current_from.is_none() && g.retired_at.is_none())
    }

    /// The generation that answered at a sequence. Before the first one's turn it is the first one,
    /// whose tables were made from the first event.
    pub(crate) fn at(&self, sequence: u64) -> Option<&Generation> {
        self.generations.iter().rev().find(|g| {
            g.current_from.is_some_and(|from| from <= sequence)
                && g.retired_at.is_none_or(|last| sequence <= last)
        })
    }

    /// The code of a query as of a sequence: the newest that was activated by then, whether or not it
    /// was removed; before the first one it is the first one.
    pub(crate) fn operator_at(&self, sequence: u64) -> Option<&Generation> {
        let activated = |g: &&Generation| g.activated_at <= sequence;
        let newest = self.generations.iter().rev().find(activated);
        newest.or_else(|| self.generations.first())
    }

    pub(crate) fn generation(&self, number: u32) -> Option<&Generation> {
        self.generations.iter().find(|g| g.number == number)
    }

    pub(crate) fn next_number(&self) -> u32 {
        self.generations.last().map_or(1, |last| last.number + 1)
    }

    fn retire_current(&mut self, last: u64) {
        for generation in &mut self.generations {
            if generation.current_from.is_some() {
                generation.retired_at.get_or_insert(last);
            }
        }
    }

    fn take(&mut self, sequence: u64, fact: &Fact) -> bool {
        match fact {
            Fact::Switched { generation } => {
                let Some(index) = self
                    .generations
                    .iter()
                    .position(|g| g.number == *generation)
                else {
                    return false;
                };
                if self.generations[index].retired_at.is_some() {
                    return false;
                }
                self.retire_current(sequence.saturating_sub(1));
                self.generations[index].current_from = Some(sequence);
                self.halts.retain(|halt| halt.generation >= *generation);
            }
            Fact::Halted {
                generation,
                sequence,
                reason,
            } => self.halts.push(HaltFact {
                generation: *generation,
                sequence: *sequence,
                reason: reason.clone(),
            }),
            Fact::Resumed { generation, .. } => {
                self.halts.retain(|halt| halt.generation != *generation);
            }
            Fact::Skipped {
                generation,
                first_sequence,
                last_sequence,
                ..
            } => {
                self.skips
                    .push((*generation, *first_sequence, *last_sequence));
                self.halts.retain(|halt| halt.generation != *generation);
            }
            Fact::Removed {} => {
                for generation in &mut self.generations {
                    generation.retired_at.get_or_insert(sequence);
                }
                self.halts.clear();
            }
            Fact::StateCheckpoint {
                generation,
                sequence,
                fingerprint,
                ..
            } => {
                let Some(fingerprint) = unhex(fingerprint) else {
                    return false;
                };
                self.checkpoints.push(CheckpointFact {
                    generation: *generation,
                    sequence: *sequence,
                    fingerprint,
                });
            }
            Fact::Published { .. } | Fact::Activated { .. } | Fact::Snapshot {} => return false,
        }
        true
    }
}
