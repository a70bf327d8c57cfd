//! Query operators: a guest per partition over tables that it cannot write, then one merge.

use std::collections::BTreeMap;

use truthdb_module::{Halt, InstanceContext, Moment, Page, module_seed};

use crate::answer::{AnswerRow, QueryAnswer, Stamp};
use crate::catalogue::{Generation, Step};
use crate::error::ComputeError;
use crate::guest::{Guest, Program};
use crate::programs::Found;
use crate::read::{Ask, Deadline, Reads, State, Unread, table_index, warn_of_damage};
use crate::request::{At, QUERY_ARGUMENTS_BYTES_MAX, QueryRequest};
use crate::tables::ReadTables;

/// Bytes of rows that one partition may add to a query's answer.
pub const QUERY_PART_BYTES_MAX: usize = 16 << 20;

/// The operator of a query, ready to run.
struct Operator {
    generation: Generation,
    program: std::sync::Arc<dyn Program>,
}

impl Reads {
    /// Calls a query operator. Runs guests on the calling thread, which needs a stack of
    /// [`crate::STACK_BYTES_MIN`].
    pub(crate) fn query(&self, request: &QueryRequest) -> Result<QueryAnswer, ComputeError> {
        self.require_query()?;
        if request.arguments.len() > QUERY_ARGUMENTS_BYTES_MAX {
            return Err(ComputeError::invalid(format!(
                "the arguments have {} bytes, at most {QUERY_ARGUMENTS_BYTES_MAX} are allowed",
                request.arguments.len()
            )));
        }
        let deadline = self.deadline(&request.options);
        let asked = self.asked(request.partition, &request.options)?;
        let first = asked.first().copied().unwrap_or(0);
        let at = self.sequence_of(first, &request.options.at)?;
        let operator = self.operator(&request.operator, first, at)?;
        let mut states = Vec::new();
        for partition in asked {
            let at = self.sequence_of(partition, &request.options.at)?;
            let of = &operator.generation;
            states.push(self.states(partition, of, at, request, deadline, Ask::All)?);
        }
        let stamps: Vec<Stamp> = states
            .iter()
            .flat_map(|states| states.values().map(|state| state.stamp.clone()))
            .collect();
        let here = stamps.iter().find(|stamp| stamp.partition == first);
        if let (None, Some(here)) = (at, here) {
            // The present is the moment that the state has reached: asked again, it is the past.
            let then = self.operator(&request.operator, first, Some(here.sequence))?;
            if then.generation.number != operator.generation.number {
                let moment = stamps.iter().map(|s| (s.partition, s.sequence)).collect();
                let mut then = request.clone();
                then.options.at = At::Token(moment);
                return self.query(&then);
            }
        }
        let (mut parts, mut fuel) = (Vec::new(), 0_u64);
        for states in &states {
            let (part, used) = self.run_on(&operator, states, request, deadline)?;
            parts.push(part);
            fuel = fuel.saturating_add(used);
        }
        let (rows, used) = self.merge(&operator, request, parts)?;
        Ok(QueryAnswer {
            rows: rows
                .rows()
                .map(|(key, value)| AnswerRow {
                    key: key.to_vec(),
                    value: value.to_vec(),
                })
                .collect(),
            operator_hash: operator.generation.hash,
            stamps,
            fuel: fuel.saturating_add(used),
        })
    }

    /// The code that answers as of a sequence of a partition, or now: an answer can be had again for
    /// ever, whatever the operator became.
    fn operator(
        &self,
        name: &str,
        partition: u32,
        at: Option<u64>,
    ) -> Result<Operator, ComputeError> {
        let catalogue = self.partitions[partition as usize].catalogue();
        let life = catalogue.modules.get(name);
        let generation = life.and_then(|life| match at {
            None => life.current(),
            Some(sequence) => life.operator_at(sequence),
        });
        let generation = generation.cloned();
        let generation = generation.ok_or_else(|| ComputeError::NoSuchModule {
            module: name.to_owned(),
        })?;
        if generation.manifest.kind != truthdb_module::ModuleKind::Query {
            return Err(ComputeError::invalid(format!(
                "module {name:?} is a {}, not a query; read its tables by get and scan",
                generation.manifest.kind
            )));
        }
        match self.programs.load(partition, &step_of(&generation)) {
            Found::Ready(program) => Ok(Operator {
                generation,
                program,
            }),
            Found::Failed(reason) => Err(ComputeError::Guest {
                module: name.to_owned(),
                reason: reason.to_string(),
            }),
            Found::Loading => Err(ComputeError::Guest {
                module: name.to_owned(),
                reason: "its code is being made ready; ask again".to_owned(),
            }),
        }
    }

    /// The states that an operator reads in a partition, all at the same sequence.
    fn states(
        &self,
        partition: u32,
        operator: &Generation,
        at: Option<u64>,
        request: &QueryRequest,
        deadline: Deadline,
        ask: Ask<'_>,
    ) -> Result<BTreeMap<String, State>, ComputeError> {
        let options = &request.options;
        let mut states = BTreeMap::new();
        for table in &operator.manifest.tables {
            if !states.contains_key(&table.module) {
                let state = self.state(partition, &table.module, at, options, deadline, ask)?;
                states.insert(table.module.clone(), state);
            }
        }
        let lowest = states.values().map(|state| state.stamp.sequence).min();
        if let (None, Some(lowest)) = (at, lowest) {
            for (module, state) in &mut states {
                if state.stamp.sequence > lowest {
                    let at = Some(lowest);
                    *state = self.state(partition, module, at, options, deadline, ask)?;
                }
            }
        }
        Ok(states)
    }

    /// The operator's rows of one partition, and the fuel that they took. Should a snapshot that it reads in
    /// be damaged, it is run again on states in memory.
    fn run_on(
        &self,
        operator: &Operator,
        states: &BTreeMap<String, State>,
        request: &QueryRequest,
        deadline: Deadline,
    ) -> Result<(Page, u64), ComputeError> {
        let damage = match self.run_operator(operator, states, request, deadline) {
            Ok(rows) => return Ok(rows),
            Err(Unread::Answer(error)) => return Err(error),
            Err(Unread::Snapshot(damage)) => damage,
        };
        let stamp = states.values().next().map(|state| &state.stamp);
        let (partition, sequence) = stamp.map_or((0, 0), |s| (s.partition, s.sequence));
        warn_of_damage(partition, &request.operator, &damage);
        let (of, at) = (&operator.generation, Some(sequence));
        let states = self.states(partition, of, at, request, deadline, Ask::Memory)?;
        match self.run_operator(operator, &states, request, deadline) {
            Ok(rows) => Ok(rows),
            Err(Unread::Answer(error)) => Err(error),
            Err(Unread::Snapshot(_)) => unreachable!("it was asked for in memory"),
        }
    }

    fn run_operator(
        &self,
        operator: &Operator,
        states: &BTreeMap<String, State>,
        request: &QueryRequest,
        deadline: Deadline,
    ) -> Result<(Page, u64), Unread> {
        let mut tables = Box::new(ReadTables::default());
        for table in &operator.generation.manifest.tables {
            let state = states.get(&table.module).expect("every owner was asked");
            let index = table_index(&table.module, &state.manifest, &table.name)?;
            tables.tables.push((state.rows.clone(), index));
        }
        let stamp = states.values().next().map(|state| state.stamp.clone());
        let partition = stamp.as_ref().map_or(0, |stamp| stamp.partition);
        let moment = moment_of(stamp.as_ref());
        let mut guest = self.guest(operator, partition, moment)?;
        let mut part = Page::default();
        let mut resume = Vec::new();
        loop {
            deadline.left(&self.world)?;
            let (back, answer) = guest.run(tables, &moment, &request.arguments, &resume);
            tables = back;
            if let Some(damage) = tables.damaged.take() {
                return Err(damage.into());
            }
            let answer = answer.map_err(|halt| failed(&request.operator, &halt))?;
            for (key, value) in answer.rows.rows() {
                part.push(key, value);
            }
            if part.data.len() > QUERY_PART_BYTES_MAX {
                return Err(Unread::Answer(ComputeError::Guest {
                    module: request.operator.clone(),
                    reason: format!(
                        "its rows of partition {partition} exceed QUERY_PART_BYTES_MAX, {QUERY_PART_BYTES_MAX} bytes"
                    ),
                }));
            }
            if !answer.rows.more {
                return Ok((part, guest.fuel_used()));
            }
            resume = answer.resume;
        }
    }

    fn guest(
        &self,
        operator: &Operator,
        partition: u32,
        moment: Moment,
    ) -> Result<Box<dyn Guest>, ComputeError> {
        let hash = &operator.generation.hash;
        let context = InstanceContext {
            seed: module_seed(&self.engine.database_id(), hash, partition),
            sequence: moment.sequence,
            time: moment.time,
        };
        let name = &operator.generation.manifest.name;
        operator
            .program
            .instantiate(&context)
            .map_err(|halt| failed(name, &halt))
    }

    fn merge(
        &self,
        operator: &Operator,
        request: &QueryRequest,
        parts: Vec<Page>,
    ) -> Result<(Page, u64), ComputeError> {
        let mut guest = self.guest(operator, 0, moment_of(None))?;
        let rows = guest.merge(&request.arguments, parts);
        let rows = rows.map_err(|halt| failed(&request.operator, &halt))?;
        Ok((rows, guest.fuel_used()))
    }
}

fn moment_of(stamp: Option<&Stamp>) -> Moment {
    Moment {
        sequence: stamp.map_or(0, |stamp| stamp.sequence),
        time: stamp.map_or(0, |stamp| stamp.timestamp_ns),
    }
}

fn failed(module: &str, halt: &Halt) -> ComputeError {
    ComputeError::Guest {
        module: module.to_owned(),
        reason: halt.to_string(),
    }
}

/// The step that a generation without tables is loaded by.
pub(crate) fn step_of(generation: &Generation) -> Step {
    Step {
        from_sequence: generation.from_sequence,
        generation: generation.number,
        hash: generation.hash,
        manifest: std::sync::Arc::clone(&generation.manifest),
        limits: generation.limits,
        wasi: generation.wasi,
        semantics_id: generation.semantics_id,
        migrate: false,
    }
}
