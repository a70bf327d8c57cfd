//! `truthdb-image`: kernels, unified kernel images, ISO and disk images from pinned inputs, started by
//! `cargo xtask kernel` and `cargo xtask image`.
//!
//! Five stages, each of which takes the artefacts of the one before and nothing else: kernels (from Debian's source
//! and the fragments), programs of others (from Debian's sources), our static programs (by cargo), unified kernel
//! images, media. An artefact that is given by path leaves its stage out. Nothing needs privileges, nothing is
//! mounted, and the same inputs give the same bytes.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

mod artefacts;
mod assemble;
mod binaries;
mod bzimage;
mod cache;
mod cpio;
mod disk;
mod fat;
mod fetch;
mod git;
mod hash;
mod images;
mod kconfig;
mod kernel;
mod licences;
mod manifest;
mod options;
mod parts;
mod plan;
mod process;
mod profile;
mod release;
mod sbom;
mod sign;
mod splash;
mod steps;
mod uki;
mod userland;
mod workshop;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::options::Options;

const USAGE: &str = "\
Usage: truthdb-image <command> [options]

  kernel {installer,runtime}   build a kernel, or find it in the cache
  runtime                      TruthDBRuntime.efi: the installed system
  iso                          truthdb-installer.iso, with the installer and the runtime in it
  disk                         disk images of an installed system: raw, qcow2, fixed VHD
  release                      everything under one version, with sums, provenance and sources

  --kernel FILE     the image's kernel, of an ISO the installer's  (default: built, or from the cache)
  --runtime-kernel FILE  the kernel of the system on an ISO        (default: built, or from the cache)
  --truthdb FILE    the server, static           (default: built)
  --node FILE       truthdb-node, static         (default: built)
  --console FILE    truthdb-console, static      (default: built)
  --installer FILE  truthdb-installer, static    (default: built)
  --runtime FILE    TruthDBRuntime.efi, for iso and disk (default: made)
  --splash FILE     BMP shown before Linux starts  (default: drawn)
  --profile NAME    cargo's profile for what is built (default: release)
  --format NAME     raw, qcow2 or vhd, for disk; may be repeated (default: all)
  --size MIB        size of a disk image; with vhd among the formats all are rounded up to a size that a
                    VHD can have                                 (default: 8192, with vhd 8253)
  --config FILE     the server's configuration in a disk image   (default: none; the runtime has one)
  --node-config FILE  the node's configuration in a disk image   (default: none; DHCP)
  --sign-key FILE, --sign-certificate FILE   sign the images for Secure Boot, with these in PEM (default: unsigned)
  --debug           kernel messages and the node's log on the serial console
  --out DIR         where artefacts go           (default: target/appliance/VERSION; of a release: dist)

What is given is looked at, and what will be made of what is shown, before any work. A release takes --out and the
options for signing only.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some((command, options)) = Options::parse(lexopt::Parser::from_env())? else {
        print!("{USAGE}");
        return Ok(());
    };
    match command.as_str() {
        "kernel" => images::kernel(&options),
        "runtime" => images::runtime(&options),
        "iso" => images::iso(&options),
        "disk" => images::disk(&options),
        "release" => release::release(&options),
        other => {
            eprint!("{USAGE}");
            bail!("there is no command {other:?}")
        }
    }
}
