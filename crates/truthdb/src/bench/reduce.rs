//! `truthdb bench reduce`: folds of a log by WebAssembly, and the same folds as native code.

use truthdb_compute::{At, ComputeConfig, Fingerprint, NoSink, ReplayCode, ReplayRequest};
use truthdb_io::{Clock as _, SystemClock};
use truthdb_module::Workload;

use serde_json::json;

use super::Common;
use super::machine::{WorkDir, process_cpu_ns};
use super::natives::{Code, Measured, Modules, ModulesArg, NOTHING};
use super::node::{Node, Numbers};
use super::report::Report;
use super::stats::Spread;
use crate::exit::{ExitClass, Failure};
use crate::server::compute::compute_failure;

/// Folds of a log by WebAssembly, and the same folds as native code.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    modules: ModulesArg,
    /// Events of each workload.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    events: u64,
    /// Events of each batch, which is one call of the guest.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Keys of the fold that gets and puts a random one for each event.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
}

/// What a replay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A module that wants no event.
    Nothing,
    Fold(Code),
}

const WAYS: [Way; 3] = [Way::Nothing, Way::Fold(Code::Native), Way::Fold(Code::Wasm)];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Nothing => "log only",
            Way::Fold(code) => code.name(),
        }
    }
}

/// One replay.
struct Pass {
    seconds: f64,
    cpu_seconds: Option<f64>,
    fingerprint: Fingerprint,
    rows: u64,
}

fn replay(node: &Node, name: &str, bytes: Vec<u8>) -> Result<Pass, Failure> {
    let request = ReplayRequest {
        module: name.to_owned(),
        code: ReplayCode::Bytes { wasm: bytes.into() },
        partition: None,
        to: At::Now,
        changes_from: None,
    };
    let clock = SystemClock::new();
    let (start, cpu_start) = (clock.monotonic_ns(), process_cpu_ns());
    let states = node.compute.replay(&request, &mut NoSink);
    let seconds = (clock.monotonic_ns() - start) as f64 / 1e9;
    let cpu = cpu_start.zip(process_cpu_ns()).map(|(from, to)| to - from);
    let states = states.map_err(compute_failure)?;
    let [state] = &states[..] else {
        return Err(Failure::new(
            ExitClass::Internal,
            "one partition was expected",
        ));
    };
    if let Some((sequence, reason)) = &state.halted {
        let message = format!("the fold stopped at event {sequence}: {reason}");
        return Err(Failure::new(ExitClass::Internal, message));
    }
    Ok(Pass {
        seconds,
        cpu_seconds: cpu.map(|ns| ns as f64 / 1e9),
        fingerprint: state.stamp.fingerprint,
        rows: state.rows,
    })
}

/// The passes of each way, in the order of [`WAYS`].
fn measure(
    args: &Args,
    modules: &Modules,
    data: &std::path::Path,
    module: Measured,
    workload: Workload,
) -> Result<[Vec<Pass>; 3], Failure> {
    let config = ComputeConfig {
        compute: false,
        query: false,
        replay: true,
        ..ComputeConfig::default()
    };
    let node = Node::open(data, modules, Code::Native, config.clone())?;
    node.fill(workload, &mut Numbers::new(1), 1, args.events, args.batch)?;
    node.close();
    let mut passes: [Vec<Pass>; 3] = Default::default();
    for round in 0..args.common.rounds {
        for turn in 0..WAYS.len() {
            // Each comes first in a third of the rounds.
            let way = (turn + round as usize) % WAYS.len();
            let (code, bytes) = match WAYS[way] {
                Way::Nothing => (Code::Native, NOTHING.to_vec()),
                Way::Fold(code) => (code, modules.bytes(module, code)?),
            };
            let node = Node::open(data, modules, code, config.clone())?;
            let pass = replay(&node, "measured", bytes);
            node.close();
            passes[way].push(pass?);
        }
    }
    for (native, wasm) in passes[1].iter().zip(&passes[2]) {
        if native.fingerprint != wasm.fingerprint {
            let message = "WebAssembly and native code have made different states";
            return Err(Failure::new(ExitClass::Damaged, message));
        }
    }
    Ok(passes)
}

/// A row for each way, and the figures for programs.
fn rows(events: u64, passes: &[Vec<Pass>; 3]) -> (Vec<Vec<String>>, Vec<serde_json::Value>) {
    let per_event = |pass: &Pass| pass.seconds * 1e9 / events as f64;
    let log_only = Spread::of(passes[0].iter().map(per_event)).median;
    let native = Spread::of(passes[1].iter().map(per_event)).median;
    let mut printed = Vec::new();
    let mut values = Vec::new();
    for (way, passes) in WAYS.iter().zip(passes) {
        let rate = Spread::of(passes.iter().map(|pass| events as f64 / pass.seconds));
        let whole = Spread::of(passes.iter().map(per_event));
        let fold = Spread::of(passes.iter().map(|pass| per_event(pass) - log_only));
        let times = Spread::of(passes.iter().map(|pass| per_event(pass) / native));
        let cpu: Option<Vec<f64>> = passes
            .iter()
            .map(|pass| pass.cpu_seconds.map(|cpu| cpu * 1e6 / events as f64))
            .collect();
        let cpu = cpu.map(Spread::of);
        let is_fold = *way != Way::Nothing;
        let or_dash = |text: String| if is_fold { text } else { "-".to_owned() };
        printed.push(vec![
            way.name().to_owned(),
            rate.text(0),
            whole.text(0),
            or_dash(fold.text(0)),
            or_dash(times.text(2)),
            cpu.map_or_else(|| "-".to_owned(), |cpu| cpu.text(2)),
        ]);
        values.push(json!({
            "way": way.name(), "events_per_s": rate.json(), "ns_per_event": whole.json(),
            "fold_ns_per_event": fold.json(), "times_native": times.json(),
            "cpu_s_per_million": cpu.map(|cpu| cpu.json()), "rows": passes[0].rows,
        }));
    }
    (printed, values)
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let modules = Modules::new(&args.modules)?;
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("reduce", work.path());
    let keyed = Workload::Balance {
        accounts: args.keys,
    };
    for (name, module, workload, what) in [
        (
            "stateless",
            Measured::Tally,
            Workload::Tally,
            "sums over payloads: one get and one put a batch".to_owned(),
        ),
        (
            "keyed",
            Measured::Balance,
            keyed,
            format!(
                "a random one of {} keys: one get and one put an event",
                args.keys
            ),
        ),
    ] {
        let passes = measure(args, &modules, &work.path().join(name), module, workload)?;
        let (printed, values) = rows(args.events, &passes);
        report.section(
            format!(
                "{what}; {} events in batches of {}",
                args.events, args.batch
            ),
            &[
                "fold",
                "events/s",
                "ns/event",
                "less the log",
                "x native",
                "CPU s/million",
            ],
            printed,
            json!({"workload": name, "events": args.events, "batch": args.batch, "ways": values}),
        );
    }
    report.note(
        "Each is a replay of the log from the first event on one thread: read, verify, filter, fold, commit \
         to the tables, keep the fingerprint. log only: a module that wants none of the events. x native: \
         the whole time over that of the same replay with native code. CPU: of the whole process. Both folds gave \
         the same fingerprints.",
    );
    Ok(report)
}
