//! `truthdb module`: modules from their first line of code to their removal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use truthdb_api::v1;
use truthdb_compute::{MODULE_BYTES_MAX, Runtime as _, WasmRuntime};
use truthdb_module::{ModuleKind, templates};

use super::connect::{self, Grpc, GrpcArgs, block_on, call_failure};
use super::module_show::{self, short};
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use crate::server::compute::passing_host;
use crate::state_json;

/// Bytes of one message of a publication.
const CHUNK_BYTES: usize = 1 << 20;
/// How often `--wait` asks how far a module is.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);
/// Stack of the thread that compiles: a compiler recurses.
const STACK_BYTES: usize = 16 << 20;

/// Write, publish, activate, upgrade and watch modules.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    truthdb module new late-aircraft --kind processor\n  \
    truthdb module upgrade late_aircraft.wasm --wait\n  \
    truthdb module status late-aircraft")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make the sources of a small module in Rust that builds and passes its tests.
    New {
        /// Its name: a to z, 0 to 9 and single hyphens; also the name of its folder.
        name: String,
        /// What it does.
        #[arg(long, value_enum, default_value_t = Kind::Reducer)]
        kind: Kind,
        /// Where to make the folder.
        #[arg(long, value_name = "DIR", default_value = ".")]
        into: PathBuf,
    },
    /// Show what a module's bytes are: name, kind, hash, tables, subscriptions. Needs no server.
    Inspect {
        /// The module.
        file: PathBuf,
    },
    /// Put a module's bytes into the log. It does nothing before it is activated.
    Publish {
        /// The module.
        file: PathBuf,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Activate published code in all partitions.
    Activate {
        /// Its hash, or as many of the first digits as make it unique.
        hash: String,
        /// How it begins.
        #[command(flatten)]
        how: How,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Publish a module's bytes and activate them, in one step.
    Upgrade {
        /// The module.
        file: PathBuf,
        /// How it begins.
        #[command(flatten)]
        how: How,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Halt a module where it is, until it is resumed.
    Halt {
        /// The module.
        module: String,
        /// Why.
        #[command(flatten)]
        why: Why,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Let a halted module try again at the batch that it stopped at.
    Resume {
        /// The module.
        module: String,
        /// Why.
        #[command(flatten)]
        why: Why,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Record that a halted module is not given some events, which lets it go on.
    Skip {
        /// The module.
        module: String,
        /// The partition.
        #[arg(long, value_name = "NUMBER")]
        partition: u32,
        /// The first sequence that is skipped.
        #[arg(long, value_name = "SEQUENCE")]
        first: u64,
        /// The last sequence that is skipped.
        #[arg(long, value_name = "SEQUENCE")]
        last: u64,
        /// Why; recorded in the log.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Remove a module from all partitions. Its states of before can still be asked for.
    Remove {
        /// The module.
        module: String,
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// List all modules, how far they are, and what is halted.
    List {
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Show one module: its generations, its published code, and what to do if it is halted.
    Status {
        /// The module.
        module: String,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
}

/// What a new module does.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Judges events before their append.
    Validator,
    /// Folds events into tables.
    Reducer,
    /// Folds events into tables and derives events.
    Processor,
    /// Answers questions from tables of other modules.
    Query,
}

/// How a generation begins.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Mode {
    /// From the first event, beside the one that answers; takes over once it has caught up.
    Rebuild,
    /// With the tables that there are, from here on.
    Continue,
    /// As continue, after one call of the new code's `migrate`.
    Migrate,
}

/// What of WASI a module may import.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Wasi {
    /// Nothing.
    None,
    /// What is a function of the log: event time as clock, seeded random numbers, no files, no network.
    Deterministic,
}

#[derive(Debug, clap::Args)]
struct How {
    /// How it begins, if a generation of it is active.
    #[arg(long, value_enum, default_value_t = Mode::Rebuild)]
    mode: Mode,
    /// What of WASI it may import; recorded with the activation.
    #[arg(long, value_enum, default_value_t = Wasi::None)]
    wasi: Wasi,
    /// A limit other than the default, such as memory_bytes=1048576; may be given again.
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = parse_limit)]
    limits: Vec<v1::ModuleLimit>,
    /// Wait until it has caught up and answers in every partition, and show how far it is.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Args)]
struct Why {
    /// Only in this partition.
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Why; recorded in the log.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

fn parse_limit(text: &str) -> Result<v1::ModuleLimit, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("a limit is NAME=VALUE, such as memory_bytes=1048576")?;
    let value = value
        .parse()
        .map_err(|_| format!("{value:?} is not a whole number"))?;
    let name = name.to_owned();
    Ok(v1::ModuleLimit { name, value })
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    match args.action {
        Action::New { name, kind, into } => new(&name, kind, &into, globals.json),
        Action::Inspect { file } => inspect(&file, globals.json),
        action => block_on(online(action, globals)),
    }
}

async fn online(action: Action, globals: &Globals) -> Result<(), Failure> {
    match action {
        Action::Publish { file, grpc } => {
            let mut server = connect::modules(globals, &grpc).await?;
            let published = publish(&mut server, &file).await?;
            tell_published(&published, globals.json)
        }
        Action::Activate { hash, how, grpc } => {
            let mut server = connect::modules(globals, &grpc).await?;
            activate(&mut server, hash, &how, globals.json).await
        }
        Action::Upgrade { file, how, grpc } => {
            let mut server = connect::modules(globals, &grpc).await?;
            let published = publish(&mut server, &file).await?;
            if !globals.json {
                tell_published(&published, false)?;
            }
            activate(
                &mut server,
                output::hex(&published.hash),
                &how,
                globals.json,
            )
            .await
        }
        Action::List { grpc } => {
            let mut server = connect::modules(globals, &grpc).await?;
            let all = server.list(v1::ListModulesRequest {}).await;
            tell_all(&all.map_err(call_failure)?.into_inner(), globals.json)
        }
        Action::Status { module, grpc } => {
            let mut server = connect::modules(globals, &grpc).await?;
            let found = server.get(v1::GetModuleRequest { module }).await;
            tell_module(&found.map_err(call_failure)?.into_inner(), globals.json)
        }
        action => decide(action, globals).await,
    }
}

/// The commands whose answer is a decision.
async fn decide(action: Action, globals: &Globals) -> Result<(), Failure> {
    let decision = match action {
        Action::Halt { module, why, grpc } => {
            let request = v1::HaltRequest {
                module,
                partition: why.partition,
                reason: why.reason,
            };
            connect::modules(globals, &grpc).await?.halt(request).await
        }
        Action::Resume { module, why, grpc } => {
            let request = v1::ResumeRequest {
                module,
                partition: why.partition,
                reason: why.reason,
            };
            connect::modules(globals, &grpc)
                .await?
                .resume(request)
                .await
        }
        Action::Skip {
            module,
            partition,
            first,
            last,
            reason,
            grpc,
        } => {
            let request = v1::SkipRequest {
                module,
                partition,
                first_sequence: first,
                last_sequence: last,
                reason,
            };
            connect::modules(globals, &grpc).await?.skip(request).await
        }
        Action::Remove { module, yes, grpc } => {
            if !yes {
                return Err(Failure::usage(format!(
                    "removing {module} ends its answers about the present in all partitions"
                ))
                .with_action("Say --yes to do it; its states of before can still be asked for."));
            }
            let request = v1::RemoveRequest { module };
            connect::modules(globals, &grpc)
                .await?
                .remove(request)
                .await
        }
        _ => return Err(Failure::usage("this command decides nothing")),
    };
    let decision = decision.map_err(call_failure)?.into_inner();
    tell_decision(&decision, globals.json)
}

fn new(name: &str, kind: Kind, into: &Path, json: bool) -> Result<(), Failure> {
    let kind = match kind {
        Kind::Validator => ModuleKind::Validator,
        Kind::Reducer => ModuleKind::Reducer,
        Kind::Processor => ModuleKind::Processor,
        Kind::Query => ModuleKind::Query,
    };
    let files = templates::render(kind, name).map_err(|error| Failure::usage(error.to_string()))?;
    let folder = into.join(name);
    if folder.exists() {
        let message = format!("{} exists already", folder.display());
        return Err(Failure::new(ExitClass::Environment, message)
            .with_action("Choose another name, or another folder with --into."));
    }
    for (path, text) in &files {
        let path = folder.join(path);
        let write = || {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, text)
        };
        write().map_err(|error| {
            Failure::environment(format!("cannot write {}", path.display()), error)
        })?;
    }
    let mut out = Output::new();
    if json {
        let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        out.json(&json!({"folder": folder.display().to_string(), "files": paths}))?;
        return out.flush();
    }
    out.line(&format!(
        "Made {}: a {kind} in Rust. Its README.md says how to test, build and publish it.",
        folder.display()
    ))?;
    out.flush()
}

/// Reads a module's file.
///
/// # Errors
///
/// `environment`: it cannot be read. `refused`: it is too long.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let failure = |error| Failure::environment(format!("cannot read {}", file.display()), error);
    let bytes = std::fs::metadata(file).map_err(failure)?.len();
    if bytes > u64::try_from(MODULE_BYTES_MAX).unwrap_or(u64::MAX) {
        let message = format!(
            "{} has {bytes} bytes; a module has at most {MODULE_BYTES_MAX}",
            file.display()
        );
        return Err(Failure::new(ExitClass::Refused, message));
    }
    std::fs::read(file).map_err(failure)
}

fn inspect(file: &Path, json: bool) -> Result<(), Failure> {
    let wasm = read(file)?;
    let work = move || {
        let host = passing_host()?;
        Ok(WasmRuntime::new(host).inspect(&wasm))
    };
    let inspected = on_stack(work)?.map_err(|reason| refused(file, &reason))?;
    let manifest = &inspected.manifest;
    let mut out = Output::new();
    if json {
        let subscriptions: Vec<Value> = manifest
            .subscriptions
            .iter()
            .map(|one| json!({"stream": one.stream, "type": one.event_type}))
            .collect();
        let tables: Vec<Value> = manifest
            .tables
            .iter()
            .map(|one| json!({"name": one.name, "version": one.version, "module": one.module}))
            .collect();
        out.json(&json!({
            "module": manifest.name,
            "version": manifest.version,
            "kind": manifest.kind.name(),
            "hash": output::hex(&inspected.hash),
            "bytes": inspected.bytes.len(),
            "subscriptions": subscriptions,
            "tables": tables,
        }))?;
        return out.flush();
    }
    let mut facts = output::facts();
    let mut fact = |name: &str, value: String| {
        facts.add_row(vec![name.to_owned(), value]);
    };
    fact("module", manifest.name.clone());
    fact("version", manifest.version.clone());
    fact("kind", manifest.kind.name().to_owned());
    fact("hash", output::hex(&inspected.hash));
    let bytes = u64::try_from(inspected.bytes.len()).unwrap_or(u64::MAX);
    fact("published as", output::bytes(bytes));
    for one in &manifest.subscriptions {
        fact("wants", format!("{} / {}", one.stream, one.event_type));
    }
    for one in &manifest.tables {
        let of = match one.module.as_str() {
            "" => String::new(),
            owner => format!(" of {owner}"),
        };
        fact(
            "table",
            format!("{}{of}, version {}", one.name, one.version),
        );
    }
    out.table(&facts)?;
    out.flush()
}

fn refused(file: &Path, reason: &str) -> Failure {
    let message = format!(
        "{} is no module that can be published: {reason}",
        file.display()
    );
    Failure::new(ExitClass::Refused, message)
}

/// Runs work that compiles on a thread with stack enough for it.
fn on_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let thread = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(work)
        .map_err(|error| Failure::environment("cannot start a thread", error))?;
    match thread.join() {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(
            ExitClass::Internal,
            "looking at the module failed",
        )),
    }
}

type Server = v1::modules_client::ModulesClient<Grpc>;

async fn publish(server: &mut Server, file: &Path) -> Result<v1::PublishResponse, Failure> {
    let wasm = Bytes::from(read(file)?);
    let chunks: Vec<v1::PublishRequest> = (0..wasm.len())
        .step_by(CHUNK_BYTES)
        .map(|at| v1::PublishRequest {
            chunk: wasm.slice(at..wasm.len().min(at + CHUNK_BYTES)),
        })
        .collect();
    let published = server.publish(futures::stream::iter(chunks)).await;
    Ok(published.map_err(call_failure)?.into_inner())
}

async fn activate(server: &mut Server, hash: String, how: &How, json: bool) -> Result<(), Failure> {
    let mode = match how.mode {
        Mode::Rebuild => v1::ActivationMode::Rebuild,
        Mode::Continue => v1::ActivationMode::Continue,
        Mode::Migrate => v1::ActivationMode::Migrate,
    };
    let wasi = match how.wasi {
        Wasi::None => "none",
        Wasi::Deterministic => "deterministic",
    };
    let request = v1::ActivateRequest {
        hash,
        module: String::new(),
        mode: mode.into(),
        limits: how.limits.clone(),
        wasi: wasi.to_owned(),
    };
    let decision = server.activate(request).await;
    let decision = decision.map_err(call_failure)?.into_inner();
    if how.wait {
        wait(server, &decision, json).await?;
    }
    tell_decision(&decision, json)
}

/// Waits until a generation answers in every partition and has applied what is committed.
async fn wait(
    server: &mut Server,
    decision: &v1::DecisionResponse,
    json: bool,
) -> Result<(), Failure> {
    let bar = output::event_bar(0, json);
    bar.set_message(format!("{} catches up", decision.module));
    loop {
        let request = v1::GetModuleRequest {
            module: decision.module.clone(),
        };
        let status = server
            .get(request)
            .await
            .map_err(call_failure)?
            .into_inner();
        let own = |one: &&v1::GenerationStatus| one.generation == decision.generation;
        let own: Vec<_> = status.generations.iter().filter(own).collect();
        bar.set_length(own.iter().map(|one| one.committed_sequence).sum());
        bar.set_position(own.iter().map(|one| one.applied_sequence).sum());
        if let Some(halted) = own.iter().find(|one| one.state() == v1::FoldState::Halted) {
            bar.finish_and_clear();
            let message = format!(
                "{} is halted in partition {} at event {}: {}",
                decision.module, halted.partition, halted.halted_sequence, halted.reason
            );
            return Err(
                Failure::new(ExitClass::Refused, message).with_action(halted.action.clone())
            );
        }
        let is_done =
            |one: &&v1::GenerationStatus| one.current && one.state() == v1::FoldState::Live;
        // Partitions that have no copy of the decision yet do not list the generation.
        let partitions = server.list(v1::ListModulesRequest {}).await;
        let partitions = partitions.map_err(call_failure)?.into_inner().folds.len();
        if own.len() >= partitions && own.iter().all(is_done) {
            bar.finish_and_clear();
            return Ok(());
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

fn tell_published(published: &v1::PublishResponse, json: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        out.json(&state_json::published(published))?;
        return out.flush();
    }
    let again = if published.existed {
        " (it was published before)"
    } else {
        ""
    };
    out.line(&format!(
        "Published {}, a {}: {}{again}",
        published.module,
        state_json::kind(published.kind()),
        output::hex(&published.hash)
    ))?;
    out.flush()
}

fn tell_decision(decision: &v1::DecisionResponse, json: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        out.json(&state_json::decision(decision))?;
        return out.flush();
    }
    let generation = match decision.generation {
        0 => String::new(),
        number => format!(", generation {number}"),
    };
    out.line(&format!(
        "Recorded for {}{generation}, at {}",
        decision.module,
        state_json::token(decision.token.as_ref())
    ))?;
    out.flush()
}

fn tell_all(all: &v1::ListModulesResponse, json: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        out.json(&json!({
            "modules": all.modules.iter().map(state_json::module).collect::<Vec<_>>(),
            "folds": all.folds.iter().map(state_json::fold).collect::<Vec<_>>(),
        }))?;
        return out.flush();
    }
    module_show::modules(&mut out, &all.modules)?;
    module_show::problems(&mut out, &all.folds)?;
    out.flush()
}

fn tell_module(module: &v1::ModuleStatus, json: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        out.json(&state_json::module(module))?;
        return out.flush();
    }
    let mut facts = output::facts();
    facts.add_row(vec!["module".to_owned(), module.module.clone()]);
    facts.add_row(vec!["kind".to_owned(), state_json::kind(module.kind())]);
    facts.add_row(vec!["tables".to_owned(), module.tables.join(", ")]);
    for code in &module.published {
        let bytes = output::bytes(code.bytes);
        let text = format!("{} ({bytes})", output::hex(&code.hash));
        facts.add_row(vec!["published".to_owned(), text]);
    }
    for one in &module.generations {
        let text = format!(
            "generation {} ({}) in partition {}: {}",
            one.generation,
            short(&one.hash),
            one.partition,
            output::hex(&one.fingerprint)
        );
        facts.add_row(vec!["fingerprint".to_owned(), text]);
    }
    out.table(&facts)?;
    out.line("")?;
    module_show::modules(&mut out, std::slice::from_ref(module))?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_name_and_a_number() {
        let limit = parse_limit("memory_bytes=7").unwrap();
        assert_eq!((limit.name.as_str(), limit.value), ("memory_bytes", 7));
        assert!(parse_limit("memory_bytes").is_err());
        assert!(parse_limit("memory_bytes=lots").is_err());
    }
}
