//! What operators see.

use std::sync::atomic::Ordering;

use crate::answer::{ComputeStatus, FoldState, GenerationStatus, ModuleStatus, PartitionFold};
use crate::catalogue::{Catalogue, Generation, Life};
use crate::compute::Inner;
use crate::shared::PartitionShared;

/// State of all folds and modules.
pub(crate) fn status(inner: &Inner) -> ComputeStatus {
    let config = &inner.config;
    let roles = [
        ("compute", config.compute),
        ("query", config.query),
        ("replay", config.replay),
    ];
    let partitions: Vec<PartitionFold> = inner
        .partitions
        .iter()
        .map(|shared| partition_fold(inner, shared))
        .collect();
    let first = inner.partitions[0].catalogue();
    let modules = first
        .modules
        .iter()
        .filter_map(|(name, life)| module_status(inner, &first, name, life))
        .collect();
    ComputeStatus {
        roles: roles
            .iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| *name)
            .collect(),
        partitions,
        modules,
    }
}

fn partition_fold(inner: &Inner, shared: &PartitionShared) -> PartitionFold {
    let committed = inner.engine.committed(shared.partition);
    let controlled = shared.controlled();
    let applied = shared
        .lines
        .read()
        .values()
        .filter(|line| is_current(&shared.catalogue(), &line.module, line.line))
        .map(|line| line.version().0.sequence)
        .min();
    PartitionFold {
        partition: shared.partition,
        controlled,
        applied: applied.unwrap_or(controlled),
        committed,
        snapshot: shared.snapshot.load(Ordering::Acquire),
        problem: shared.problem.lock().clone(),
    }
}

fn is_current(catalogue: &Catalogue, module: &str, line: u32) -> bool {
    let life = catalogue.modules.get(module);
    life.and_then(Life::current)
        .is_some_and(|current| current.line == line)
}

fn module_status(
    inner: &Inner,
    first: &Catalogue,
    name: &str,
    life: &Life,
) -> Option<ModuleStatus> {
    let published: Vec<_> = first
        .codes
        .iter()
        .filter(|(_, code)| code.manifest.name == name)
        .map(|(hash, code)| (*hash, code.bytes))
        .collect();
    let newest = life.current().or_else(|| life.generations.last());
    let (kind, manifest, module_hash) = match newest {
        Some(generation) => (
            generation.manifest.kind,
            &generation.manifest,
            generation.hash,
        ),
        None => {
            let (hash, code) = first
                .codes
                .iter()
                .find(|(_, code)| code.manifest.name == name)?;
            (code.manifest.kind, &code.manifest, *hash)
        }
    };
    let mut generations = Vec::new();
    for shared in &inner.partitions {
        let catalogue = shared.catalogue();
        let Some(life) = catalogue.modules.get(name) else {
            continue;
        };
        for generation in life.generations.iter().filter(|g| g.retired_at.is_none()) {
            generations.push(generation_status(inner, shared, life, generation));
        }
    }
    Some(ModuleStatus {
        module: name.to_owned(),
        kind,
        tables: crate::read::table_names(manifest),
        module_hash,
        generations,
        published,
    })
}

fn generation_status(
    inner: &Inner,
    shared: &PartitionShared,
    life: &Life,
    generation: &Generation,
) -> GenerationStatus {
    let committed = inner.engine.committed(shared.partition);
    let current = life
        .current()
        .is_some_and(|c| c.number == generation.number);
    let mut status = GenerationStatus {
        partition: shared.partition,
        generation: generation.number,
        module_hash: generation.hash,
        mode: generation.mode,
        current,
        activated_at: generation.activated_at,
        applied: shared.controlled(),
        committed,
        state: FoldState::Live,
        fingerprint: truthdb_state::Fingerprint::EMPTY,
        rows: 0,
        bytes: 0,
        events: 0,
        emitted: 0,
        fuel: 0,
        emitted_through: 0,
        semantics_differ: inner.runtime.semantics_id(&generation.limits) != generation.semantics_id,
    };
    if !generation.manifest.kind.owns_tables() {
        return status;
    }
    status.state = FoldState::CatchingUp;
    status.applied = 0;
    if let Some(line) = shared.line(&generation.manifest.name, generation.line) {
        let public = line.get();
        status.applied = public.version.sequence;
        status.fingerprint = public.version.view.fingerprint();
        status.rows = public.version.view.rows();
        status.bytes = public.version.view.bytes();
        status.state = match public.state {
            FoldState::Live if public.version.sequence < committed => FoldState::CatchingUp,
            state => state,
        };
        status.events = public.events;
        status.emitted = public.emitted;
        status.fuel = public.fuel;
        if generation.manifest.kind == truthdb_module::ModuleKind::Processor {
            status.emitted_through = public.emitted_through;
        }
    }
    status
}
