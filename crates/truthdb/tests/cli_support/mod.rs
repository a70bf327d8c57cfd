//! The program as a process that ends: arguments in, output and exit code out.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of what is shared"
)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::server_support::{Server, program};

/// A process that ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    fn new(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It ended well.
    #[track_caller]
    pub fn ok(self) -> Ended {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// It failed with this code; returns what it said, once, on standard error.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }

    /// The one value that it printed.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The values that it printed, one on each line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// Runs the program.
pub fn cli(arguments: &[&str]) -> Ended {
    let output = program()
        .args(arguments)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output();
    Ended::new(output.unwrap())
}

/// A server's addresses.
#[derive(Clone)]
pub struct At {
    native: String,
    grpc: String,
}

impl From<&Server> for At {
    fn from(server: &Server) -> At {
        At {
            native: server.native.to_string(),
            grpc: server.http.to_string(),
        }
    }
}

/// The program with a server's addresses.
pub fn command_at(server: impl Into<At>, arguments: &[&str]) -> Command {
    let at = server.into();
    let mut command = program();
    command
        .args(arguments)
        .env("TRUTHDB_SERVER", at.native)
        .env("TRUTHDB_GRPC", at.grpc)
        .stdin(Stdio::null());
    command
}

/// Runs the program with a server's addresses.
pub fn cli_at(server: impl Into<At>, arguments: &[&str]) -> Ended {
    Ended::new(command_at(server, arguments).output().unwrap())
}

/// The same with something on standard input.
pub fn cli_with_input(server: impl Into<At>, arguments: &[&str], input: &str) -> Ended {
    let mut child = command_at(server, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A program that refuses a line reads no further.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ended::new(output)
}

/// Lines of so many events, numbered, in turn of so many streams `prefix-0`, `prefix-1`, …; about
/// a kilobyte each.
pub fn lines_of_events(prefix: &str, events: u64, streams: u64) -> String {
    let padding = "x".repeat(900);
    (0..events)
        .map(|n| {
            let event_type = if n % 2 == 0 { "even" } else { "odd" };
            let stream = n % streams;
            format!(
                "{{\"stream\":\"{prefix}-{stream}\",\"type\":\"{event_type}\",\
                 \"payload\":{{\"n\":{n},\"padding\":\"{padding}\"}}}}\n"
            )
        })
        .collect()
}
