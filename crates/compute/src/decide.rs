//! What a fold decides: commands, copies of decisions, and when a rebuilt generation takes over.

use std::sync::Arc;

use truthdb_engine::EncodedEvents;
use truthdb_module::ModuleKind;

use crate::answer::{Decided, FoldState, Published};
use crate::command::{Order, Outcome, Reply};
use crate::control::{self, Fact, ManifestRecord, hex, unhex};
use crate::error::ComputeError;
use crate::fold::Fold;
use crate::guest::Inspected;
use crate::outgoing::Answer;
use crate::request::{ActivateRequest, ActivationMode, REASON_BYTES_MAX, SkipRequest};
use crate::token::Token;

type Decision = Result<(Vec<EncodedEvents>, Outcome), ComputeError>;

impl Fold {
    /// Carries a command out: its events are queued, or it is refused.
    pub(crate) fn carry_out(&mut self, order: Order, reply: Arc<Reply>) {
        let decision = match order {
            Order::Publish(inspected) => self.publish(&inspected),
            Order::Activate(request) => self.activate(&request),
            Order::Remove { module } => self.remove(&module),
            Order::Halt { module, reason } => self.halt(&module, reason),
            Order::Resume { module, reason } => self.resume(&module, reason),
            Order::Skip(request) => self.skip(&request),
            Order::Snapshot => self.mark(),
            Order::Prune(policy) => self.store.prune(&policy).map(|()| {
                let nothing: Vec<EncodedEvents> = Vec::new();
                (nothing, Fold::decided("", 0))
            }),
        };
        match decision {
            Ok((events, outcome)) if events.is_empty() => reply.complete(Ok(outcome)),
            Ok((events, outcome)) => self.outgoing.push(events, Some(Answer { reply, outcome })),
            Err(error) => reply.complete(Err(error)),
        }
    }

    fn encode(
        &self,
        stream: &str,
        decision: &str,
        fact: Fact,
    ) -> Result<EncodedEvents, ComputeError> {
        control::encode_control(self.world.random.as_ref(), stream, decision, fact)
    }

    fn new_decision(&self) -> String {
        control::new_decision(self.world.random.as_ref())
    }

    fn decided(module: &str, generation: u32) -> Outcome {
        Outcome::Decided(Decided {
            module: module.to_owned(),
            generation,
            token: Token::default(),
        })
    }

    fn publish(&mut self, inspected: &Inspected) -> Decision {
        let module = &inspected.manifest.name;
        let mut outcome = Published {
            module: module.clone(),
            hash: inspected.hash,
            bytes: inspected.bytes.len() as u64,
            kind: inspected.manifest.kind,
            existed: false,
            token: Token::default(),
        };
        if let Some(code) = self.catalogue.codes.get(&inspected.hash) {
            outcome.existed = true;
            outcome.token = Token::of(self.partition, code.published_at);
            return Ok((Vec::new(), Outcome::Published(outcome)));
        }
        let mut events = control::encode_code(
            self.world.random.as_ref(),
            &inspected.hash,
            &inspected.bytes,
        )?;
        let fact = Fact::Published {
            hash: hex(&inspected.hash),
            bytes: outcome.bytes,
            manifest: ManifestRecord::of(&inspected.manifest),
        };
        events.push(self.encode(&control::module_stream(module), &self.new_decision(), fact)?);
        Ok((events, Outcome::Published(outcome)))
    }

    fn activate(&mut self, request: &ActivateRequest) -> Decision {
        let code = self.catalogue.codes.get(&request.hash);
        let code = code.ok_or_else(|| ComputeError::NotPublished {
            hash: hex(&request.hash),
        })?;
        let manifest = Arc::clone(&code.manifest);
        self.check_owners(&manifest)?;
        let life = self.catalogue.modules.get(&manifest.name);
        if let Some(life) = life {
            let current = life
                .current()
                .map(|current| current.manifest.kind.owns_tables());
            if current.is_some_and(|owns| owns != manifest.kind.owns_tables()) {
                return Err(ComputeError::invalid(format!(
                    "module {:?} is of another kind now; remove it before a {} takes its name",
                    manifest.name, manifest.kind
                )));
            }
            if life.shadow().is_some() && request.mode != ActivationMode::Rebuild {
                return Err(ComputeError::invalid(format!(
                    "a generation of module {:?} is being rebuilt; wait for it, or replace it by another rebuild",
                    manifest.name
                )));
            }
        }
        let generation = life.map_or(1, |life| life.next_number());
        let fact = Fact::Activated {
            generation,
            hash: hex(&request.hash),
            module_kind: manifest.kind.name().to_owned(),
            mode: request.mode.name().to_owned(),
            from_sequence: self.takes_over_at(&manifest.name, request.mode),
            limits: control::limits_record(&request.limits),
            wasi: control::wasi_name(request.wasi).to_owned(),
            semantics_id: hex(&self.programs.runtime().semantics_id(&request.limits)),
        };
        let stream = control::module_stream(&manifest.name);
        let events = vec![self.encode(&stream, &self.new_decision(), fact)?];
        Ok((events, Fold::decided(&manifest.name, generation)))
    }

    /// A code that goes on in tables whose code is halted begins at the batch that it is halted at.
    fn takes_over_at(&self, module: &str, mode: ActivationMode) -> Option<u64> {
        if mode == ActivationMode::Rebuild {
            return None;
        }
        let current = self.catalogue.modules.get(module)?.current()?.line;
        self.lines.iter().find_map(|line| {
            let mine = line.spec().module == module && line.spec().line == current;
            match &line.state {
                FoldState::Halted { .. } if mine => Some(line.runner.applied + 1),
                _ => None,
            }
        })
    }

    /// Validators and queries need the tables that they name.
    fn check_owners(&self, manifest: &truthdb_module::Manifest) -> Result<(), ComputeError> {
        if manifest.kind.owns_tables() {
            return Ok(());
        }
        for table in &manifest.tables {
            let life = self.catalogue.modules.get(&table.module);
            let owner = life.and_then(|life| life.current());
            let owner = owner.ok_or_else(|| {
                ComputeError::invalid(format!(
                    "it reads table {} of module {:?}, which is not active; activate that one first",
                    table.name, table.module
                ))
            })?;
            if !owner.manifest.tables.iter().any(|t| t.name == table.name) {
                return Err(ComputeError::invalid(format!(
                    "it reads table {} of module {:?}, which has no table of that name",
                    table.name, table.module
                )));
            }
        }
        Ok(())
    }

    fn live(&self, module: &str) -> Result<&crate::catalogue::Generation, ComputeError> {
        let life = self.catalogue.modules.get(module);
        life.and_then(|life| life.current())
            .ok_or_else(|| ComputeError::NoSuchModule {
                module: module.to_owned(),
            })
    }

    fn remove(&mut self, module: &str) -> Decision {
        self.live(module)?;
        for (name, life) in &self.catalogue.modules {
            let reads = life.current().is_some_and(|current| {
                current.manifest.kind == ModuleKind::Validator
                    && current
                        .manifest
                        .tables
                        .iter()
                        .any(|table| table.module == module)
            });
            if reads {
                return Err(ComputeError::invalid(format!(
                    "validator {name:?} reads the tables of module {module:?}; remove it first"
                )));
            }
        }
        let stream = control::module_stream(module);
        let events = vec![self.encode(&stream, &self.new_decision(), Fact::Removed {})?];
        Ok((events, Fold::decided(module, 0)))
    }

    fn check_reason(reason: &str) -> Result<(), ComputeError> {
        if reason.len() > REASON_BYTES_MAX {
            return Err(ComputeError::invalid(format!(
                "the reason has {} bytes, at most {REASON_BYTES_MAX} are recorded",
                reason.len()
            )));
        }
        Ok(())
    }

    fn halt(&mut self, module: &str, reason: String) -> Decision {
        Fold::check_reason(&reason)?;
        let generation = self.live(module)?.number;
        let line = self.live(module)?.line;
        let applied = self
            .lines
            .iter()
            .find(|l| l.spec().module == module && l.spec().line == line)
            .map_or(self.controlled, |line| line.runner.applied);
        let fact = Fact::Halted {
            generation,
            sequence: applied + 1,
            reason: format!("by an operator: {reason}"),
        };
        let events = vec![self.encode(&control::module_stream(module), "", fact)?];
        Ok((events, Fold::decided(module, generation)))
    }

    fn resume(&mut self, module: &str, reason: String) -> Decision {
        Fold::check_reason(&reason)?;
        let life = self.catalogue.modules.get(module);
        let halt = life.and_then(|life| life.halts.last()).cloned();
        // A program that could not be made is made again.
        self.programs.forget_failures();
        let halted = self
            .lines
            .iter_mut()
            .find(|line| line.spec().module == module && line.is_halted());
        let generation = match (halt, halted) {
            (Some(halt), _) => halt.generation,
            (None, Some(line)) => {
                // Nothing of this stop is in the log: it ends here.
                line.lift();
                line.runner.current_step().generation
            }
            (None, None) => {
                return Err(ComputeError::invalid(format!(
                    "module {module:?} is not halted in partition {}",
                    self.partition
                )));
            }
        };
        let fact = Fact::Resumed { generation, reason };
        let events = vec![self.encode(&control::module_stream(module), "", fact)?];
        Ok((events, Fold::decided(module, generation)))
    }

    fn skip(&mut self, request: &SkipRequest) -> Decision {
        Fold::check_reason(&request.reason)?;
        let module = &request.module;
        let halted = self
            .lines
            .iter()
            .find(|line| line.spec().module == *module && line.is_halted());
        let Some(line) = halted else {
            return Err(ComputeError::invalid(format!(
                "module {module:?} is not halted in partition {}; only what it is halted at, and what follows, can be skipped",
                self.partition
            )));
        };
        let next = line.runner.applied + 1;
        let (first, last) = (request.first_sequence, request.last_sequence);
        if first < next || last < first || last > self.controlled {
            return Err(ComputeError::invalid(format!(
                "events {first} to {last} cannot be skipped: the module has applied everything before {next}, \
                 and {} is committed",
                self.controlled
            )));
        }
        let generation = line.runner.spec.steps[line.runner.spec.step_at(first)].generation;
        let fact = Fact::Skipped {
            generation,
            first_sequence: first,
            last_sequence: last,
            reason: request.reason.clone(),
        };
        let events = vec![self.encode(&control::module_stream(module), "", fact)?];
        Ok((events, Fold::decided(module, generation)))
    }

    fn mark(&mut self) -> Decision {
        let events = vec![self.encode(control::SNAPSHOT_STREAM, "", Fact::Snapshot {})?];
        Ok((events, Fold::decided("", 0)))
    }

    /// Copies the next decision of the first partition into this one's log.
    pub(crate) fn copy_decision(&mut self) -> bool {
        let first = self.peers[0].catalogue();
        let Some(decision) = first.decisions.get(self.catalogue.decisions.len()) else {
            return false;
        };
        let mut fact = decision.fact.clone();
        let mut events = Vec::new();
        match &mut fact {
            Fact::Published { hash, .. } => {
                let Some(hash) = unhex(hash) else {
                    return false;
                };
                let code = match self.programs.bytes(0, &hash) {
                    Ok(bytes) => control::encode_code(self.world.random.as_ref(), &hash, &bytes),
                    Err(reason) => {
                        *self.shared.problem.lock() = Some(reason);
                        return false;
                    }
                };
                match code {
                    Ok(code) => events = code,
                    Err(error) => {
                        *self.shared.problem.lock() = Some(error.to_string());
                        return false;
                    }
                }
            }
            Fact::Activated {
                mode,
                from_sequence,
                ..
            } => {
                let mode = control::mode_of(mode).unwrap_or_default();
                *from_sequence = self.takes_over_at(&decision.module, mode);
            }
            _ => {}
        }
        match self.encode(
            &control::module_stream(&decision.module),
            &decision.id,
            fact,
        ) {
            Ok(copy) => events.push(copy),
            Err(_) => return false,
        }
        self.outgoing.push(events, None);
        true
    }

    /// Lets a rebuilt generation take over once it has caught up in all partitions.
    pub(crate) fn switch_caught_up(&mut self) -> bool {
        let mut ready = None;
        for (module, life) in &self.catalogue.modules {
            let Some(shadow) = life.shadow() else {
                continue;
            };
            let caught_up = self.peers.iter().all(|peer| {
                let line = peer.line(module, shadow.line);
                line.is_some_and(|line| line.version().1 == FoldState::Live)
            });
            if caught_up {
                ready = Some((module.clone(), shadow.number));
                break;
            }
        }
        let Some((module, generation)) = ready else {
            return false;
        };
        let fact = Fact::Switched { generation };
        let stream = control::module_stream(&module);
        match self.encode(&stream, &self.new_decision(), fact) {
            Ok(event) => {
                self.outgoing.push(vec![event], None);
                true
            }
            Err(_) => false,
        }
    }
}
