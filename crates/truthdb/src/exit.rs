//! The one list of exit codes, and the failure that every command ends in.

use std::error::Error;
use std::fmt;
use std::io::Write as _;

use truthdb_api::{ApiError, ErrorCode};

/// Why the program ended. The numbers are part of the interface and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitClass {
    /// A bug: something that cannot happen did.
    Internal,
    /// The command line is wrong.
    Usage,
    /// The configuration is wrong.
    Config,
    /// The machine: disk, file, permission, address in use, memory.
    Environment,
    /// Stored data is damaged, or a check found that it is not what it must be.
    Damaged,
    /// Another process has the data directory open.
    Locked,
    /// The data was written by a newer version of the program.
    NewerFormat,
    /// The server cannot be reached, or the connection broke.
    Network,
    /// No token, a wrong one, or one without the permission; or a server that is not the expected one.
    Access,
    /// The server refused the request as it is: repeating it unchanged is of no use.
    Refused,
    /// The server cannot do it now: the same request may succeed later.
    TryLater,
}

impl ExitClass {
    /// Every class with its code, its name in `--json` output, and what it means.
    pub(crate) const TABLE: &[(ExitClass, u8, &'static str, &'static str)] = &[
        (
            ExitClass::Internal,
            1,
            "internal",
            "A bug of TruthDB. Report it with the output.",
        ),
        (ExitClass::Usage, 2, "usage", "The command line is wrong."),
        (
            ExitClass::Config,
            3,
            "config",
            "The configuration is wrong.",
        ),
        (
            ExitClass::Environment,
            4,
            "environment",
            "The machine: a disk or file error, a missing permission, an address in use.",
        ),
        (
            ExitClass::Damaged,
            5,
            "damaged",
            "Stored data is damaged, or a check found that it is not what it must be.",
        ),
        (
            ExitClass::Locked,
            6,
            "locked",
            "Another process has the data directory open.",
        ),
        (
            ExitClass::NewerFormat,
            7,
            "newer-format",
            "The data was written by a newer version of TruthDB.",
        ),
        (
            ExitClass::Network,
            8,
            "network",
            "The server cannot be reached, or the connection broke.",
        ),
        (
            ExitClass::Access,
            9,
            "access",
            "No token or a wrong one, a missing permission, or an unexpected server certificate.",
        ),
        (
            ExitClass::Refused,
            10,
            "refused",
            "The server refused the request; repeating it unchanged is of no use.",
        ),
        (
            ExitClass::TryLater,
            11,
            "try-later",
            "The server cannot do it now (overloaded, disk full, shutting down); try again later.",
        ),
    ];

    fn row(self) -> &'static (ExitClass, u8, &'static str, &'static str) {
        &Self::TABLE[self as usize]
    }

    /// The process's exit code.
    pub(crate) fn code(self) -> u8 {
        self.row().1
    }

    /// The name in `--json` output.
    pub(crate) fn name(self) -> &'static str {
        self.row().2
    }
}

/// A command's failure: its class, what happened, what to do, and what caused it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The class, which decides the exit code.
    pub class: ExitClass,
    /// What happened, to what.
    pub message: String,
    /// What to do, if there is something to say.
    pub action: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure without a cause.
    pub(crate) fn new(class: ExitClass, message: impl Into<String>) -> Self {
        Failure {
            class,
            message: message.into(),
            action: None,
            source: None,
        }
    }

    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitClass::Usage, message)
    }

    /// Something the machine refused, with what it said.
    pub(crate) fn environment(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::new(ExitClass::Environment, message).with_source(source)
    }

    /// The same failure with its cause.
    #[must_use]
    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure with what to do about it.
    #[must_use]
    pub(crate) fn with_action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// The message and the messages of all its causes, each once.
    pub(crate) fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.message.clone()];
        let mut next: Option<&(dyn Error + 'static)> = self
            .source
            .as_deref()
            .map(|error| error as &(dyn Error + 'static));
        while let Some(error) = next {
            let text = error.to_string();
            if chain.last() != Some(&text) {
                chain.push(text);
            }
            next = error.source();
        }
        chain
    }

    /// Prints the failure to standard error, for people or as one line of JSON.
    pub(crate) fn report(&self, json: bool) {
        let mut stderr = std::io::stderr().lock();
        // Nothing is left to do when standard error is gone; the exit code still tells.
        let _ = if json {
            let value = serde_json::json!({"error": {
                "class": self.class.name(),
                "exit_code": self.class.code(),
                "message": self.message,
                "causes": &self.chain()[1..],
                "action": self.action,
            }});
            writeln!(stderr, "{value}")
        } else {
            writeln!(stderr, "{self}")
        };
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = self.chain();
        write!(f, "truthdb: {}", chain[0])?;
        for cause in &chain[1..] {
            write!(f, "\n  because: {cause}")?;
        }
        match &self.action {
            Some(action) => write!(f, "\n  what to do: {action}"),
            None => Ok(()),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let class = match error.code {
            ErrorCode::Unavailable => ExitClass::Network,
            ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => ExitClass::Access,
            ErrorCode::PartitionFenced => ExitClass::Damaged,
            ErrorCode::PartitionStopped => ExitClass::Environment,
            ErrorCode::Overloaded | ErrorCode::DiskFull | ErrorCode::Deadline => {
                ExitClass::TryLater
            }
            ErrorCode::Internal => ExitClass::Internal,
            _ if error.retryable => ExitClass::TryLater,
            _ => ExitClass::Refused,
        };
        let message = format!("{}: {} ({})", error.code, error.message, error.outcome);
        Failure::new(class, message).with_action(error.action())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_no_code_is_used_twice() {
        for (index, (class, code, _, _)) in ExitClass::TABLE.iter().enumerate() {
            assert_eq!(*class as usize, index);
            assert_eq!(usize::from(*code), index + 1);
        }
    }

    #[test]
    fn the_documentation_lists_every_exit_code() {
        let page = include_str!("../../../docs/operations.md");
        for (_, code, name, meaning) in ExitClass::TABLE {
            let row = format!("| {code} | {name} | {meaning} |");
            assert!(page.contains(&row), "docs/operations.md lacks: {row}");
        }
    }

    #[test]
    fn a_failure_prints_each_cause_once_and_what_to_do() {
        let io = std::io::Error::other("no such device");
        let failure = Failure::environment("cannot open /x", io).with_action("plug it in");
        assert_eq!(
            failure.to_string(),
            "truthdb: cannot open /x\n  because: no such device\n  what to do: plug it in"
        );
    }
}
