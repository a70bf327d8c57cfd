//! A machine to look at by hand: the image on a disk, CD or stick, the serial line in the terminal.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lexopt::prelude::{Long, Value};
use truthdb_vm_tests::disk::empty;
use truthdb_vm_tests::machine::acceleration;

/// The firmware, as Debian has it.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Its variables.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Bytes of the disk beside a medium, which an installation goes to.
const DISK_BYTES: u64 = 16 << 30;

/// Starts the machine and waits for its end.
///
/// # Errors
///
/// No image, QEMU or firmware.
pub(crate) fn main(parser: &mut lexopt::Parser) -> Result<()> {
    let mut image = None;
    let mut device = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("cd") => device = Some("ide-cd,bus=ide.0,drive=medium,bootindex=1"),
            Long("usb") => device = Some("usb-storage,bus=usb.0,drive=medium,bootindex=1"),
            Value(path) if image.is_none() => image = Some(PathBuf::from(path)),
            other => return Err(other.unexpected().into()),
        }
    }
    let image = image.context("which image?")?;
    ensure!(image.is_file(), "{} is not there", image.display());
    let extension = image.extension().and_then(|extension| extension.to_str());
    let (format, default) = match extension {
        Some("iso") => ("raw", "ide-cd,bus=ide.0,drive=medium,bootindex=1"),
        Some("qcow2") => ("qcow2", "virtio-blk-pci,drive=medium,bootindex=1"),
        Some("vhd") => ("vpc", "virtio-blk-pci,drive=medium,bootindex=1"),
        _ => ("raw", "virtio-blk-pci,drive=medium,bootindex=1"),
    };
    let variables = std::env::temp_dir().join(format!("truthdb-vm-{}.fd", std::process::id()));
    std::fs::copy(VARIABLES, &variables).context("`apt-get install ovmf` brings the firmware")?;
    let mut target = Vec::new();
    if extension == Some("iso") {
        let disk = image.with_file_name("boot-disk.qcow2");
        if !disk.exists() {
            empty(&disk, DISK_BYTES)?;
        }
        println!("A disk to install on: {}, which is kept", disk.display());
        target.push("-drive".to_owned());
        target.push(format!(
            "if=none,id=target,format=qcow2,file={}",
            disk.display()
        ));
        target.push("-device".to_owned());
        target.push("virtio-blk-pci,drive=target,bootindex=2,serial=TARGET-1".to_owned());
    }
    println!(
        "The machine's serial line follows. Ctrl-A, then X, leaves; Ctrl-A, then C, is QEMU's own \
         prompt. Ports 7433 and 7434 of the machine are 127.0.0.1:17433 and 17434. The image keeps what is written."
    );
    let status = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-nographic",
            "-serial",
            "mon:stdio",
            "-cpu",
            "max",
        ])
        .args([
            "-machine",
            &format!("q35,accel={}", acceleration()),
            "-smp",
            "2",
            "-m",
            "1024",
        ])
        .args([
            "-device",
            "VGA",
            "-device",
            "qemu-xhci,id=usb",
            "-device",
            "usb-kbd,bus=usb.0",
        ])
        .arg("-drive")
        .arg(format!(
            "if=pflash,format=raw,unit=0,readonly=on,file={CODE}"
        ))
        .arg("-drive")
        .arg(format!(
            "if=pflash,format=raw,unit=1,file={}",
            variables.display()
        ))
        .arg("-drive")
        .arg(format!(
            "if=none,id=medium,format={format},file={}",
            image.display()
        ))
        .args(["-device", device.unwrap_or(default)])
        .args(target)
        .args([
            "-netdev",
            "user,id=net,hostfwd=tcp:127.0.0.1:17433-:7433,hostfwd=tcp:127.0.0.1:17434-:7434",
        ])
        .args(["-device", "virtio-net-pci,netdev=net"])
        .status()
        .context("`apt-get install qemu-system-x86` brings QEMU")?;
    let _ = std::fs::remove_file(&variables);
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
