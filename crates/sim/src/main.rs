//! `truthdb-sim`: runs seeds, hunts canaries, kills real processes.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks by printing"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::{Long, Value, ValueExt};
use truthdb_sim::seeds::{run_seeds, run_sim};
use truthdb_sim::{Sim, crash_loop};

const USAGE: &str = "\
truthdb-sim run --seed N [--trace]              one seed; the trace goes to standard output
truthdb-sim state --seed N                      one seed of a world with modules
truthdb-sim state --count N [--start S]         many of them; stops at the first failure
truthdb-sim seeds --start S --count N [--jobs J]  many seeds; stops at the first failure
truthdb-sim canaries [NAME ...] [--count N]     plants bugs and looks how soon they are found
truthdb-sim crash-loop [--kills N] [--seed S] [--seconds T] [--dir D]
                                                kill -9 of real processes under load
";

type Error = Box<dyn std::error::Error>;

#[derive(Default)]
struct Arguments {
    command: String,
    values: Vec<String>,
    seed: Option<u64>,
    start: Option<u64>,
    count: Option<u64>,
    jobs: Option<usize>,
    kills: Option<u64>,
    seconds: Option<u64>,
    dir: Option<PathBuf>,
    trace: bool,
}

fn parse() -> Result<Arguments, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut arguments = Arguments::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seed") => arguments.seed = Some(parser.value()?.parse()?),
            Long("start") => arguments.start = Some(parser.value()?.parse()?),
            Long("count") => arguments.count = Some(parser.value()?.parse()?),
            Long("jobs") => arguments.jobs = Some(parser.value()?.parse()?),
            Long("kills") => arguments.kills = Some(parser.value()?.parse()?),
            Long("seconds") => arguments.seconds = Some(parser.value()?.parse()?),
            Long("dir") => arguments.dir = Some(parser.value()?.into()),
            Long("trace") => arguments.trace = true,
            Value(value) if arguments.command.is_empty() => arguments.command = value.string()?,
            Value(value) => arguments.values.push(value.string()?),
            other => return Err(other.unexpected()),
        }
    }
    Ok(arguments)
}

// musl's own is slow, and most of a simulation is making and dropping.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprint!("truthdb-sim: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let result = match arguments.command.as_str() {
        "run" => run(&arguments),
        "seeds" => seeds(&arguments),
        "state" => state(&arguments),
        "canaries" => canaries(&arguments),
        "crash-loop" => crashes(&arguments),
        "crash-child" => child(&arguments),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("truthdb-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let seed = arguments.seed.ok_or("run needs --seed")?;
    println!("seed {seed}");
    if arguments.trace {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .init();
    }
    let mut sim = Sim::new(seed, arguments.trace);
    if arguments.trace {
        println!("{:#?}", sim.profile());
    }
    let result = run_sim(seed, &mut sim);
    for line in sim.trace() {
        println!("{line}");
    }
    let figures = result.map_err(|failure| failure.to_string())?;
    println!("{figures:?}");
    Ok(())
}

fn seeds(arguments: &Arguments) -> Result<(), Error> {
    let start = arguments.start.unwrap_or(1);
    let count = arguments.count.ok_or("seeds needs --count")?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let jobs = arguments.jobs.unwrap_or(cores);
    println!("seeds {start} to {} on {jobs} threads", start + count - 1);
    let progress = |done: u64| {
        if done.is_multiple_of(500) {
            println!("{done} of {count} done");
        }
    };
    let totals = run_seeds(start, count, jobs, &progress).map_err(|f| f.to_string())?;
    println!("{totals:?}");
    Ok(())
}

fn state(arguments: &Arguments) -> Result<(), Error> {
    let start = arguments.seed.or(arguments.start).unwrap_or(1);
    if arguments.trace {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .init();
    }
    for seed in start..start + arguments.count.unwrap_or(1) {
        let figures = truthdb_sim::run_state_seed(seed).map_err(|f| f.to_string())?;
        println!("seed {seed}: {figures:?}");
    }
    Ok(())
}

#[cfg(feature = "canaries")]
fn canaries(arguments: &Arguments) -> Result<(), Error> {
    use truthdb_sim::canaries::{BUDGETS, STATE_BUDGETS, hunt, hunt_state};
    let wanted = |name: &str| {
        let values = &arguments.values;
        values.is_empty() || values.iter().any(|value| value == name)
    };
    let mut missed = Vec::new();
    let mut tell = |name: String, budget: u64, found: Option<truthdb_sim::seeds::Failure>| {
        if let Some(found) = found {
            let violation = found.violation.0.lines().next().unwrap_or_default();
            println!(
                "{name}: found by seed {} of {budget}: {violation}",
                found.seed
            );
        } else {
            println!("{name}: not found by {budget} seeds");
            missed.push(name);
        }
    };
    for (canary, budget) in STATE_BUDGETS {
        if wanted(&canary.name()) {
            let budget = arguments.count.unwrap_or(budget);
            tell(canary.name(), budget, hunt_state(canary, budget));
        }
    }
    for (canary, budget) in BUDGETS {
        let name = format!("{canary:?}");
        if wanted(&name) {
            let budget = arguments.count.unwrap_or(budget);
            tell(name, budget, hunt(canary, budget));
        }
    }
    if missed.is_empty() {
        return Ok(());
    }
    Err(format!("not found: {}", missed.join(", ")).into())
}

#[cfg(not(feature = "canaries"))]
fn canaries(_arguments: &Arguments) -> Result<(), Error> {
    Err("this build has no canaries: build with --features canaries".into())
}

fn crashes(arguments: &Arguments) -> Result<(), Error> {
    let options = crash_loop::Options {
        seed: arguments.seed.unwrap_or(1),
        kills: arguments.kills.unwrap_or(200),
        time_max: Duration::from_secs(arguments.seconds.unwrap_or(900)),
    };
    println!("seed {}", options.seed);
    let program = std::env::current_exe()?;
    let dir = match &arguments.dir {
        Some(dir) => dir.clone(),
        // Beside the program: a build directory, on a real disk.
        None => program
            .parent()
            .ok_or("the program lies nowhere")?
            .to_owned(),
    };
    let progress = |outcome: &crash_loop::Outcome| {
        if outcome.kills.is_multiple_of(20) {
            println!(
                "{} kills, {} acknowledged, {} events",
                outcome.kills, outcome.acknowledged, outcome.events
            );
        }
    };
    let outcome = crash_loop::run(&dir, &program, &options, &progress)?;
    let ms = |ns: Option<&u64>| ns.map_or(0, |ns| ns / 1_000_000);
    let times = &outcome.open_ns;
    println!(
        "{} kills, {} batches acknowledged, {} events stored, {} batches stored without an acknowledgement seen\n\
         open: min {} ms, median {} ms, max {} ms",
        outcome.kills,
        outcome.acknowledged,
        outcome.events,
        outcome.unacknowledged,
        ms(times.first()),
        ms(times.get(times.len() / 2)),
        ms(times.last()),
    );
    Ok(())
}

fn child(arguments: &Arguments) -> Result<(), Error> {
    let [dir, first] = arguments.values.as_slice() else {
        return Err("crash-child needs a directory and a number".into());
    };
    crash_loop::child(&PathBuf::from(dir), first.parse()?)
}
