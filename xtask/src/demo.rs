//! `cargo xtask run`: builds the server, loads a year of real flights, shows what it can do, and
//! leaves it up.
//!
//! Everything it makes lies in one folder, which carries a mark, so that `--clean` removes nothing
//! else. What it
//! shows are calls of the `truthdb` program that anybody can repeat: each is printed before it runs.

use std::io::IsTerminal as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lexopt::prelude::{Long, ValueExt as _};
use signal_hook::consts::{SIGINT, SIGTERM};

mod state;

use crate::install::{self, Libc};
use crate::process::{command, line_of, output, root, run, target_dir};
use crate::tools;

/// The file that says that a folder was made here.
const MARK: &str = "made-by-xtask-run";
/// The aircraft that is shown: the one of the first flight in the data.
const STREAM: &str = "aircraft/N14228";
const AIRCRAFT: &str = "N14228";
/// The events of its year.
const STREAM_EVENTS: usize = 333;
/// How long the server may take to answer for the first time: it may have to recover.
const START_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const PORT: u16 = 7433;

struct Options {
    once: bool,
    clean: bool,
    folder: PathBuf,
    port: u16,
    libc: Libc,
}

impl Options {
    fn parse(parser: &mut lexopt::Parser) -> Result<Self> {
        let folder = target_dir().join("demo");
        let mut options = Self {
            once: false,
            clean: false,
            folder,
            port: PORT,
            libc: Libc::Host,
        };
        while let Some(argument) = parser.next()? {
            match argument {
                Long("once") => options.once = true,
                Long("clean") => options.clean = true,
                Long("data") => options.folder = std::path::absolute(parser.value()?)?,
                Long("static") => options.libc = Libc::Musl,
                Long("port") => options.port = parser.value()?.parse()?,
                other => return Err(other.unexpected().into()),
            }
        }
        ensure!(
            (1..u16::MAX).contains(&options.port),
            "--port takes 1 to {}",
            u16::MAX - 1
        );
        Ok(options)
    }
}

/// Runs the demonstration, or removes what it made.
pub(crate) fn main(parser: &mut lexopt::Parser) -> Result<bool> {
    let options = Options::parse(parser)?;
    if options.clean {
        clean(&options.folder)?;
        return Ok(true);
    }
    let demo = Demo::build(&options)?;
    demo.init()?;
    let server = demo.serve()?;
    let server = demo.show(server)?;
    println!("\n==> Demonstration complete: everything above was checked.");
    if options.once || !std::io::stdin().is_terminal() {
        server.stop()?;
        let why = if options.once {
            "--once was given"
        } else {
            "standard input is no terminal"
        };
        println!("    The server is stopped, because {why}. `cargo xtask run` leaves it up.");
        println!(
            "    `cargo xtask run --clean` removes {}.",
            shown(&options.folder)
        );
        return Ok(true);
    }
    demo.leave_up(server)?;
    Ok(true)
}

/// Removes the folder, if it was made here.
fn clean(folder: &Path) -> Result<()> {
    if !folder.exists() {
        println!("{} is not there: nothing to remove", shown(folder));
        return Ok(());
    }
    ensure!(
        folder.join(MARK).is_file(),
        "{} was not made by `run`: left alone",
        shown(folder)
    );
    std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    println!("removed {}", shown(folder));
    Ok(())
}

/// A path as one would type it from the root of the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Two consecutive free ports on the loopback address; the first.
pub(crate) fn free_ports() -> Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
        let port = first
            .local_addr()
            .context("looking for a free port")?
            .port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return Ok(port);
        }
    }
    bail!("there are no two free ports beside each other");
}

struct Demo {
    folder: PathBuf,
    http_port: u16,
    truthdb: PathBuf,
    flights_load: PathBuf,
    python: PathBuf,
}

impl Demo {
    fn build(options: &Options) -> Result<Self> {
        println!("==> Building the server and the loader (some minutes the first time)");
        let programs = tools::programs(&["truthdb", "flights-load"], &[], options.libc)?;
        state::build()?;
        println!("==> Preparing the independent verifier of proofs (Python)");
        Ok(Self {
            folder: options.folder.clone(),
            http_port: options.port,
            truthdb: programs.join("truthdb"),
            flights_load: programs.join("flights-load"),
            python: install::python()?,
        })
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn native(&self) -> String {
        format!("127.0.0.1:{}", self.http_port + 1)
    }

    /// A call that works on the data directory.
    fn offline(&self, verb: &str) -> Command {
        let mut command = command(&self.truthdb);
        command.arg(verb).arg("--data").arg(self.data());
        command
    }

    /// A call that asks the server over the native protocol.
    fn online(&self, verb: &str) -> Command {
        let mut command = command(&self.truthdb);
        command.args([verb, "--server", &self.native()]);
        command
    }

    /// A call that asks the server over gRPC, as those of operators do.
    fn admin(&self, verb: &str) -> Command {
        let mut command = command(&self.truthdb);
        command.args([verb, "--grpc", &format!("127.0.0.1:{}", self.http_port)]);
        command
    }

    /// Makes the database, unless it is there.
    fn init(&self) -> Result<()> {
        if self.folder.join(MARK).is_file() {
            println!(
                "==> The database of the last time is in {}",
                shown(&self.folder)
            );
            return Ok(());
        }
        println!(
            "==> Making a database with 4 partitions in {}",
            shown(&self.folder)
        );
        let is_empty =
            std::fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_none());
        let is_free = is_empty || !self.folder.exists();
        ensure!(
            is_free,
            "{} is not empty: choose another with --data",
            shown(&self.folder)
        );
        std::fs::create_dir_all(&self.folder).context("making the folder")?;
        run(self.offline("init").args(["--partitions", "4"]))?;
        // Last: a folder whose database was not made is not taken for one.
        std::fs::write(
            self.folder.join(MARK),
            "`cargo xtask run --clean` removes this folder\n",
        )
        .context("marking the folder")
    }

    /// Starts the server and waits until it answers.
    fn serve(&self) -> Result<Server> {
        let config = self.folder.join("truthdb.toml");
        let text = format!(
            "[data]\ndirectory = {:?}\n\n[listen]\nhttp = \"127.0.0.1:{}\"\nnative = \"{}\"\n",
            self.data(),
            self.http_port,
            self.native()
        );
        std::fs::write(&config, text).context("writing the configuration")?;
        let log_path = self.folder.join("server.log");
        let log = std::fs::File::create(&log_path).context("making the server's log file")?;
        let errors = log.try_clone().context("making the server's log file")?;
        let ready = self.folder.join("ports.json");
        if ready.exists() {
            std::fs::remove_file(&ready).context("removing the last server's ports")?;
        }
        let mut serve = command(&self.truthdb);
        serve
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--ports-file")
            .arg(&ready);
        serve.stdin(Stdio::null()).stdout(log).stderr(errors);
        println!(
            "==> Starting the server; its messages go to {}",
            shown(&log_path)
        );
        println!("    $ {}", line_of(&serve));
        let child = serve.spawn().context("starting the server")?;
        let mut server = Server {
            child,
            log: log_path,
        };
        let polls_max = START_MAX.as_millis() / POLL.as_millis();
        for _ in 0..polls_max {
            server.check()?;
            // The server writes it when it answers.
            if ready.is_file() {
                return Ok(server);
            }
            std::thread::sleep(POLL);
        }
        bail!(
            "the server was not ready within {START_MAX:?}:\n{}",
            server.said()
        );
    }

    /// What a newcomer should see.
    fn show(&self, server: Server) -> Result<Server> {
        println!(
            "\n==> Loading every flight that left New York in 2013: who, when, and what became of it"
        );
        run(command(&self.flights_load).args(["--server", &self.native()]))?;

        println!("\n==> One aircraft's year: its stream is its history, in order");
        let year = output(self.online("read").args([STREAM, "--json"]))?;
        let events = year.lines().count();
        run(self.online("read").args([STREAM, "--limit", "9"]))?;
        println!("    ... {events} events in all");
        ensure!(
            events == STREAM_EVENTS,
            "{STREAM} should have {STREAM_EVENTS} events"
        );

        println!("\n==> Following a partition: what is there, then what comes");
        run(self
            .online("subscribe")
            .args(["--partition", "0", "--limit", "5"]))?;

        let server = self.show_state(server, &year)?;

        println!("\n==> The server's view: partitions, segments, seals");
        run(&mut self.admin("status"))?;

        println!("\n==> Verifying what is sealed: checksums, chains, roots, no gap");
        run(&mut self.admin("verify"))?;

        println!("\n==> Proving one event, and checking the proof with an independent program");
        let proof = self.folder.join("proof.json");
        let first = year.lines().next().context("the stream is empty")?;
        let first: serde_json::Value = serde_json::from_str(first).context("reading the event")?;
        let (partition, sequence) = (
            first["partition"].to_string(),
            first["sequence"].to_string(),
        );
        let mut prove = self.admin("prove");
        prove.args(["--partition", &partition, &sequence]);
        println!("    $ {} > {}", line_of(&prove), shown(&proof));
        std::fs::write(&proof, output(&mut prove)?).context("writing the proof")?;
        run(command(&self.python)
            .arg("clients/verify-proof/verify_proof.py")
            .arg(&proof))?;
        Ok(server)
    }

    /// Leaves the server to the user until Ctrl-C.
    fn leave_up(&self, mut server: Server) -> Result<()> {
        println!("\n==> The server is up. Ctrl-C stops it.");
        println!("    HTTP and gRPC  http://127.0.0.1:{}", self.http_port);
        println!(
            "    metrics        http://127.0.0.1:{}/metrics",
            self.http_port
        );
        println!("    native         {}", self.native());
        println!(
            "    try            {} status --server {}",
            shown(&self.truthdb),
            self.native()
        );
        // Ctrl-C goes to the server too. This program waits for it to stop, so that the prompt
        // comes back last.
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&asked))
                .context("waiting for Ctrl-C")?;
        }
        let status = server.child.wait().context("waiting for the server")?;
        ensure!(
            status.success(),
            "the server ended with {status}:\n{}",
            server.said()
        );
        println!("    The server is stopped.");
        Ok(())
    }
}

/// The running server; stopped when dropped.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Fails if the server has ended.
    fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("asking for the server")? {
            None => Ok(()),
            Some(status) => bail!("the server ended with {status}:\n{}", self.said()),
        }
    }

    /// The end of the server's log.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Asks the server to stop, and waits.
    fn stop(mut self) -> Result<()> {
        self.terminate()?;
        let status = self.child.wait().context("waiting for the server")?;
        ensure!(
            status.success(),
            "the server ended with {status}:\n{}",
            self.said()
        );
        Ok(())
    }

    fn terminate(&self) -> Result<()> {
        let pid = self.child.id().to_string();
        output(command("sh").args(["-c", "kill -TERM \"$0\"", &pid])).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A failed demonstration must not leave a server behind; its own error is what counts.
            let _ = self.terminate();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_removes_only_what_was_made_here() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        std::fs::create_dir(&made).unwrap();
        std::fs::write(made.join("precious"), "").unwrap();
        assert!(clean(&made).is_err());
        assert!(made.join("precious").exists());
        std::fs::write(made.join(MARK), "").unwrap();
        clean(&made).unwrap();
        assert!(!made.exists());
        clean(&made).unwrap();
    }

    #[test]
    fn free_ports_can_both_be_bound() {
        let port = free_ports().unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
        assert!(TcpListener::bind(("127.0.0.1", port + 1)).is_ok());
    }
}
