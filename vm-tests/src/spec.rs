//! What a machine is made of, as a value, and the command line that QEMU gets for it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio.
    Virtio,
    /// NVMe.
    Nvme,
    /// A SATA disk behind an AHCI controller.
    Ahci,
    /// A stick on a USB 3 controller.
    Usb,
    /// A disk on a USB 3 controller.
    UsbDisk,
    /// A SCSI disk behind a virtio controller, which can be pulled out.
    Scsi,
    /// A CD drive behind an AHCI controller.
    Cd,
}

/// What the firmware checks before it starts an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// Nothing.
    Open,
    /// Secure Boot, with the keys of vendors, who have signed none of our images.
    VendorKeys,
    /// Secure Boot, with the key for tests that the distribution's firmware comes with.
    TestKeys,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Its format, as QEMU names it: `raw`, `qcow2`, `vpc`.
    pub format: String,
    /// How it is attached.
    pub bus: Bus,
    /// Whether the machine can write to it.
    pub read_only: bool,
    /// Bytes of a logical sector: 512, or 4096 (with virtio and NVMe).
    pub sector_bytes: u32,
    /// A configuration of QEMU's `blkdebug` filter, which makes reads and writes fail.
    pub faults: Option<PathBuf>,
}

impl Disk {
    /// A writable disk with sectors of 512 bytes.
    #[must_use]
    pub fn new(path: &Path, format: &str, bus: Bus) -> Disk {
        Disk {
            path: path.to_owned(),
            format: format.to_owned(),
            bus,
            read_only: bus == Bus::Cd,
            sector_bytes: 512,
            faults: None,
        }
    }
}

/// A machine before it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Its disks, in the order in which the firmware tries them.
    pub disks: Vec<Disk>,
    /// Whether it has a screen and a keyboard.
    pub screen: bool,
    /// Whether it has a network card, with a port of the host forwarded to port 7433 of the machine.
    pub network: bool,
    /// What the firmware checks.
    pub firmware: Firmware,
    /// Whether a restart of the machine ends QEMU.
    pub ends_at_reboot: bool,
    /// What the machine's clock says at power on, as `2000-01-01T00:00:00`; `None`: the time of the host.
    pub clock: Option<&'static str>,
    /// The address of the machine that ports are forwarded to; `None`: the one that DHCP gives.
    pub guest_address: Option<&'static str>,
    /// Whether instructions are counted: one processor, emulated, whatever acceleration there is.
    pub counts_instructions: bool,
    /// A unified kernel image and its command line, started by the firmware in place of a disk.
    pub kernel: Option<(PathBuf, String)>,
    /// More arguments.
    pub more: Vec<String>,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            cpus: 2,
            memory_mib: 1024,
            disks: Vec::new(),
            screen: true,
            network: true,
            firmware: Firmware::Open,
            ends_at_reboot: false,
            clock: None,
            guest_address: None,
            counts_instructions: false,
            kernel: None,
            more: Vec::new(),
        }
    }
}

/// What the command line needs besides the spec.
pub(crate) struct Surroundings<'a> {
    /// `kvm` or `tcg`.
    pub(crate) acceleration: &'a str,
    /// The firmware.
    pub(crate) code: &'a Path,
    /// This machine's copy of the firmware's variables.
    pub(crate) variables: &'a Path,
    /// Folder of sockets and logs.
    pub(crate) folder: &'a Path,
    /// The forwarded ports of the host: HTTP and gRPC, and the native protocol.
    pub(crate) ports: [u16; 2],
}

impl Spec {
    /// QEMU's arguments.
    ///
    /// # Errors
    ///
    /// A combination that QEMU does not have, or a path that its syntax cannot hold.
    pub(crate) fn arguments(&self, around: &Surroundings<'_>) -> Result<Vec<String>> {
        let mut line: Vec<String> = Vec::new();
        let mut add = |arguments: &[&str]| {
            line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        };
        let acceleration = match self.counts_instructions {
            true => "tcg",
            false => around.acceleration,
        };
        let cpu = if acceleration == "kvm" { "host" } else { "max" };
        // Secure Boot's variables are protected by system management mode.
        let smm = match self.firmware {
            Firmware::Open => "off",
            Firmware::VendorKeys | Firmware::TestKeys => "on",
        };
        let machine = format!("q35,accel={acceleration},smm={smm}");
        add(&["-nodefaults", "-machine", &machine, "-cpu", cpu]);
        add(&[
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &self.memory_mib.to_string(),
        ]);
        for (unit, path, read_only) in [(0, around.code, "on"), (1, around.variables, "off")] {
            let file = plain(path)?;
            let flash =
                format!("if=pflash,format=raw,unit={unit},readonly={read_only},file={file}");
            add(&["-drive", &flash]);
        }
        let folder = plain(around.folder)?;
        // The harness listens there and keeps what it hears. QEMU's own log of a socket has bytes twice that the socket
        // did not take at once.
        let serial = format!("socket,id=serial,path={folder}/serial");
        add(&["-display", "none"]);
        add(&["-chardev", &serial, "-serial", "chardev:serial"]);
        add(&["-qmp", &format!("unix:{folder}/qmp,server=on,wait=off")]);
        if self.screen {
            add(&["-device", "VGA,edid=on,xres=1024,yres=768"]);
        }
        add(&["-device", "qemu-xhci,id=usb"]);
        if self.screen {
            add(&["-device", "usb-kbd,bus=usb.0"]);
        }
        if self.network {
            let [http, native] = around.ports;
            let to = self.guest_address.unwrap_or_default();
            let user = format!(
                "user,id=net,hostfwd=tcp:127.0.0.1:{http}-{to}:7433,\
                 hostfwd=tcp:127.0.0.1:{native}-{to}:7434"
            );
            add(&[
                "-netdev",
                &user,
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
            ]);
        }
        add(&["-device", "virtio-rng-pci"]);
        if self.disks.iter().any(|disk| disk.bus == Bus::Scsi) {
            add(&["-device", "virtio-scsi-pci,id=scsi"]);
        }
        for (at, disk) in self.disks.iter().enumerate() {
            let [drive, device] = disk_arguments(at, disk)?;
            add(&["-drive", &drive, "-device", &device]);
        }
        if let Some(clock) = self.clock {
            add(&["-rtc", &format!("base={clock}")]);
        }
        if let Some((image, command_line)) = &self.kernel {
            add(&["-kernel", plain(image)?, "-append", command_line]);
        }
        if self.counts_instructions {
            // A nanosecond of the machine's time for each; while it is idle, its time is that of the host.
            add(&["-icount", "shift=0"]);
        }
        if self.ends_at_reboot {
            add(&["-no-reboot"]);
        }
        line.extend(self.more.iter().cloned());
        Ok(line)
    }
}

fn disk_arguments(at: usize, disk: &Disk) -> Result<[String; 2]> {
    let Disk {
        bus,
        format,
        sector_bytes,
        ..
    } = disk;
    let path = plain(&disk.path)?;
    let file = match &disk.faults {
        Some(faults) => format!(
            "file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={path}",
            plain(faults)?
        ),
        None => format!("file={path}"),
    };
    let read_only = if disk.read_only { "on" } else { "off" };
    let drive =
        format!("if=none,id=disk{at},format={format},readonly={read_only},discard=unmap,{file}");
    let sectors = format!("logical_block_size={sector_bytes},physical_block_size={sector_bytes}");
    let boot = format!("id=dev{at},drive=disk{at},bootindex={}", at + 1);
    ensure!(
        *sector_bytes == 512 || matches!(bus, Bus::Virtio | Bus::Nvme),
        "sectors of {sector_bytes} bytes are for virtio and NVMe"
    );
    let device = match bus {
        Bus::Virtio => format!("virtio-blk-pci,{boot},{sectors},serial=TDB-VIRTIO-{at}"),
        Bus::Nvme => format!("nvme,{boot},{sectors},serial=TDB-NVME-{at}"),
        // q35 has an AHCI controller of its own, with six ports.
        Bus::Ahci => format!("ide-hd,bus=ide.{at},{boot},serial=TDB-SATA-{at}"),
        Bus::Cd => format!("ide-cd,bus=ide.{at},{boot}"),
        Bus::Usb => format!("usb-storage,bus=usb.0,removable=on,{boot}"),
        Bus::Scsi => format!("scsi-hd,bus=scsi.0,{boot},serial=TDB-SCSI-{at}"),
        Bus::UsbDisk => {
            format!("usb-storage,bus=usb.0,removable=off,{boot},serial=TDB-USB-{at}")
        }
    };
    Ok([drive, device])
}

/// A path for QEMU's comma-separated options.
fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().filter(|text| !text.contains([',', ':', ' ']));
    text.ok_or_else(|| anyhow::anyhow!("QEMU cannot take the path {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(spec: &Spec) -> String {
        let around = Surroundings {
            acceleration: "tcg",
            code: Path::new("/f/code.fd"),
            variables: Path::new("/m/vars.fd"),
            folder: Path::new("/m"),
            ports: [4711, 4712],
        };
        spec.arguments(&around).unwrap().join(" ")
    }

    #[test]
    fn a_headless_machine_has_neither_screen_nor_keyboard() {
        let spec = Spec {
            screen: false,
            ..Spec::default()
        };
        assert!(!line(&spec).contains("VGA") && !line(&spec).contains("kbd"));
        assert!(line(&Spec::default()).contains("hostfwd=tcp:127.0.0.1:4711-:7433"));
    }

    #[test]
    fn instructions_are_counted_by_emulation_only() {
        let spec = Spec {
            counts_instructions: true,
            ..Spec::default()
        };
        let line = line(&spec);
        assert!(line.contains("accel=tcg") && line.contains("-icount shift=0"));
    }

    #[test]
    fn disks_are_tried_in_their_order() {
        let spec = Spec {
            disks: vec![
                Disk::new(Path::new("/d/i.iso"), "raw", Bus::Cd),
                Disk::new(Path::new("/d/t.qcow2"), "qcow2", Bus::Nvme),
            ],
            ..Spec::default()
        };
        let line = line(&spec);
        assert!(
            line.contains("ide-cd,bus=ide.0,id=dev0,drive=disk0,bootindex=1"),
            "{line}"
        );
        assert!(
            line.contains("nvme,id=dev1,drive=disk1,bootindex=2"),
            "{line}"
        );
        assert!(line.contains("readonly=on") && line.contains("format=qcow2,readonly=off"));
    }

    #[test]
    fn what_qemu_cannot_take_is_refused() {
        let mut disk = Disk::new(Path::new("/d/a,b"), "raw", Bus::Virtio);
        assert!(disk_arguments(0, &disk).is_err());
        disk.path = "/d/a".into();
        disk.bus = Bus::Ahci;
        disk.sector_bytes = 4096;
        assert!(disk_arguments(0, &disk).is_err());
    }
}
