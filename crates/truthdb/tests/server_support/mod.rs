//! A server as a process of its own, and plain HTTP to talk to it.
//!
//! The server's messages are part of its interface: a WARN or ERROR that a test did not announce
//! fails it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of what is shared"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

/// How long a test waits for what must come; only a broken server makes it wait so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    child: Child,
    logs: Receiver<Value>,
    seen: Vec<Value>,
    allowed: Vec<&'static str>,
    pub data: PathBuf,
    pub http: SocketAddr,
    pub native: SocketAddr,
    pub fingerprint: Option<String>,
    pub stdout: Option<BufReader<ChildStdout>>,
}

/// The program, with an environment that cannot change what a test means.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_truthdb"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRUTHDB_") {
            command.env_remove(name);
        }
    }
    command
}

impl Server {
    /// Starts a server on free ports; `config` is added to its configuration.
    pub fn start(dir: &tempfile::TempDir, config: &str, arguments: &[&str]) -> Server {
        let file = dir.path().join("truthdb.toml");
        std::fs::write(&file, config).unwrap();
        let data = dir.path().join("data");
        let mut child = program()
            .arg("--config")
            .arg(&file)
            .arg("--data")
            .arg(&data)
            .args(["serve", "--init-if-empty"])
            .args(arguments)
            .env("TRUTHDB_LISTEN__HTTP", "127.0.0.1:0")
            .env("TRUTHDB_LISTEN__NATIVE", "127.0.0.1:0")
            .env("TRUTHDB_LOG__FORMAT", "json")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, logs) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let line = line.unwrap();
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|_| serde_json::json!({"level": "TEXT", "message": line}));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let stdout = child.stdout.take().map(BufReader::new);
        let mut server = Server {
            child,
            logs,
            seen: Vec::new(),
            allowed: Vec::new(),
            data,
            http: unset,
            native: unset,
            fingerprint: None,
            stdout,
        };
        let ready = server.wait_log("TruthDB is ready");
        server.http = ready["http"].as_str().unwrap().parse().unwrap();
        server.native = ready["native"].as_str().unwrap().parse().unwrap();
        if ready["tls"] == true {
            let told = server.wait_log("the certificate that clients pin");
            server.fingerprint = Some(told["sha256"].as_str().unwrap().to_owned());
        }
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Warnings and errors whose message contains this are expected.
    pub fn allow_log(&mut self, part: &'static str) {
        self.allowed.push(part);
    }

    /// Waits for a message that contains `part`.
    pub fn wait_log(&mut self, part: &str) -> Value {
        loop {
            let Ok(line) = self.logs.recv_timeout(PATIENCE) else {
                panic!("the server never said {part:?}; it said:\n{}", self.said());
            };
            let found = line["message"]
                .as_str()
                .is_some_and(|text| text.contains(part));
            self.seen.push(line.clone());
            if found {
                return line;
            }
        }
    }

    /// A message that was seen, or comes.
    pub fn find_log(&mut self, part: &str) -> Value {
        let contains = |line: &&Value| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains(part))
        };
        match self.seen.iter().find(contains) {
            Some(line) => line.clone(),
            None => self.wait_log(part),
        }
    }

    /// How many messages of this level that contain `part` there were so far.
    pub fn count_logs(&mut self, level: &str, part: &str) -> usize {
        self.seen.extend(self.logs.try_iter());
        let is_it = |line: &&Value| {
            line["level"] == level
                && line["message"]
                    .as_str()
                    .is_some_and(|text| text.contains(part))
        };
        self.seen.iter().filter(is_it).count()
    }

    /// The process ends at once, as when the machine's memory runs out.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn said(&self) -> String {
        self.seen.iter().map(|line| format!("{line}\n")).collect()
    }

    fn check_logs(&mut self) {
        self.seen.extend(self.logs.iter());
        for line in &self.seen {
            let level = line["level"].as_str().unwrap_or("TEXT");
            let message = line["message"].as_str().unwrap_or_default();
            let expected = self.allowed.iter().any(|part| message.contains(part));
            let quiet = matches!(level, "INFO" | "DEBUG" | "TRACE");
            assert!(quiet || expected, "unexpected message: {line}");
        }
    }

    /// SIGTERM; waits for the end and looks at every message.
    pub fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        self.check_logs();
        status
    }

    /// SIGTERM; the exit code must be 0.
    pub fn stop_cleanly(self) {
        let status = self.stop();
        assert!(status.success(), "{status}");
    }

    /// One HTTP/1.1 request over a connection of its own.
    pub fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        http_at(self.http, method, path, headers, body)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.http("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.http("POST", path, &[], body)
    }

    /// Resident memory of the server, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", self.said());
        }
    }
}

/// One HTTP/1.1 request over a connection of its own, from whatever thread.
pub fn http_at(
    http: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut stream = TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!(
            "content-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        ));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes)
}

/// An HTTP answer.
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(bytes);
        let (headers, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = headers
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        Answer {
            status,
            headers: headers.to_lowercase(),
            body: body.to_owned(),
        }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.body))
    }

    /// Asserts the status and the error code; returns the error.
    pub fn error(&self, status: u16, code: &str) -> Value {
        let json = self.json();
        assert_eq!(
            (self.status, json["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        json
    }
}

/// Reads one server-sent event: its fields by name.
pub fn next_sse(reader: &mut impl std::io::BufRead) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the stream ended");
        let line = line.trim_end();
        if line.is_empty() && !fields.is_empty() {
            return fields;
        }
        // Chunk sizes of the transfer encoding stand on lines of their own, without a colon.
        if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_owned(), value.trim_start().to_owned()));
        }
    }
}

/// The value of a field.
pub fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields
        .iter()
        .find(|(key, _)| key == name)
        .map_or("", |(_, value)| value)
}
