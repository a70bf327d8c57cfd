//! A harness for virtual machines: starts QEMU with the real images, and drives and observes it from outside, over
//! its control socket (QMP), its serial line, its screen, and a forwarded port.
//!
//! A machine is described by a [`Spec`] and is a [`Machine`] while it runs. Every wait has a deadline, stretched where
//! nothing but emulation is to be had; when one passes, the error carries the end of the serial line and the place of
//! the last screen. Firmware variables are a fresh copy for every start, since a used store remembers boot entries.
//! Nothing here knows what a test is about.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test harness talks to its user"
)]

pub mod answers;
pub mod client;
pub mod disk;
pub mod guide;
pub mod http;
pub mod load;
pub mod machine;
pub mod picture;
pub mod qmp;
pub mod spec;
pub mod terminal;
pub mod time_server;
pub mod wait;

pub use machine::Machine;
pub use spec::{Bus, Disk, Firmware, Spec};
