//! Tests of installations: from the medium onto disks of virtual machines, and what is then on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use truthdb_vm_tests::client::Client;
use truthdb_vm_tests::disk::{
    empty, has_old_raid, overwrite, same, write, write_old_raid, write_old_system,
};
use truthdb_vm_tests::guide::{Guide, Keys};
use truthdb_vm_tests::terminal::{line_after, plain};
use truthdb_vm_tests::time_server::TimeServer;
use truthdb_vm_tests::{Bus, Disk, Firmware, Machine, Spec, answers};

use crate::Artefacts;
use crate::runtime::{FIRMWARE_LINES, check_quiet};

/// From power on to a database that answers, on a real processor.
pub(crate) const BOOT: Duration = Duration::from_secs(60);
/// From power on to the end of an installation that nobody watches.
pub(crate) const INSTALL: Duration = Duration::from_secs(180);
/// From the power button to the end.
const STOP: Duration = Duration::from_secs(30);
/// Bytes of the disks that are installed on.
pub(crate) const DISK_BYTES: u64 = 9 << 30;
/// Characters of a fingerprint: pairs of digits, with colons.
const FINGERPRINT_CHARS: usize = 32 * 3 - 1;

/// A folder with disks.
pub(crate) struct Bench<'a> {
    artefacts: &'a Artefacts,
    pub(crate) folder: PathBuf,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(artefacts: &'a Artefacts, name: &str) -> Result<Bench<'a>> {
        let folder = artefacts.work.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).context("removing what an earlier test left")?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Bench { artefacts, folder })
    }

    pub(crate) fn medium(&self) -> Disk {
        Disk::new(&self.artefacts.iso, "raw", Bus::Cd)
    }

    /// An empty disk.
    pub(crate) fn disk(&self, name: &str, bytes: u64, bus: Bus) -> Result<Disk> {
        let path = self.folder.join(format!("{name}.qcow2"));
        empty(&path, bytes)?;
        Ok(Disk::new(&path, "qcow2", bus))
    }

    /// A stick with answers.
    pub(crate) fn answers(&self, text: &str) -> Result<Disk> {
        let text = text.as_bytes();
        self.stick("answers", "TRUTHDB-CFG", "truthdb-install.toml", text)
    }

    /// A stick with one file.
    fn stick(&self, name: &str, label: &str, file: &str, content: &[u8]) -> Result<Disk> {
        let stick = self.folder.join(format!("{name}.raw"));
        answers::volume(&stick, label, file, content)?;
        Ok(Disk::new(&stick, "raw", Bus::Usb))
    }

    pub(crate) fn client(&self, machine: &Machine, secrets: &Secrets) -> Client {
        Client {
            program: self.artefacts.truthdb.clone(),
            port: machine.native_port(),
            token: secrets.token.clone(),
            fingerprint: secrets.fingerprint.clone(),
        }
    }

    /// Leaves the last page of a new installation, without its medium: the machine starts from its disk, and takes
    /// an event.
    fn restarted(&self, mut guide: Guide, secrets: &Secrets) -> Result<(Machine, Client)> {
        guide.machine.eject(0)?;
        guide.restart()?;
        let mut machine = guide.machine;
        let client = self.client(&machine, secrets);
        wait_for_append(&mut machine, &client, "orders", 0)?;
        Ok((machine, client))
    }
}

/// What the last page shows once.
#[derive(Clone)]
pub(crate) struct Secrets {
    token: String,
    fingerprint: String,
}

impl Secrets {
    pub(crate) fn on(page: &str) -> Result<Secrets> {
        let line = |begin: &str| {
            let line = line_after(page, begin);
            line.with_context(|| format!("no line behind {begin:?} on the page:\n{page}"))
        };
        let fingerprint = line("Certificate fingerprint")?.to_owned();
        // Not in the middle of a line that is still being sent.
        ensure!(
            fingerprint.len() == FINGERPRINT_CHARS,
            "no fingerprint: {fingerprint}"
        );
        Ok(Secrets {
            token: line("Admin token")?.to_owned(),
            fingerprint,
        })
    }
}

/// Waits until the node takes an event.
pub(crate) fn wait_for_append(
    machine: &mut Machine,
    client: &Client,
    stream: &str,
    number: u64,
) -> Result<()> {
    let mut last = String::new();
    let outcome = machine.wait("the node takes an event", BOOT, |_| {
        match client.append(stream, number) {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                last = format!("{error:#}");
                Ok(None)
            }
        }
    });
    outcome.with_context(|| format!("the client was last told: {last}"))
}

fn check_events(client: &Client, stream: &str, count: u64) -> Result<()> {
    let events = client.read(stream)?;
    let numbers: Vec<Option<u64>> = events.iter().map(|e| e["payload"]["n"].as_u64()).collect();
    let wanted: Vec<Option<u64>> = (0..count).map(Some).collect();
    ensure!(
        numbers == wanted,
        "{stream}: {numbers:?} are there, {wanted:?} were acknowledged"
    );
    Ok(())
}

/// A whole life: installed by keys from the CD beside a disk with another system, serving, a power cut, reinstalled
/// with its data by serial line.
pub(crate) fn by_keys(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "install-keys")?;
    let disk = bench.disk("disk", DISK_BYTES, Bus::Virtio)?;
    let neighbour = bench.disk("other", DISK_BYTES, Bus::Virtio)?;
    write_old_system(&neighbour.path)?;
    let untouched = bench.folder.join("untouched.qcow2");
    std::fs::copy(&neighbour.path, &untouched).context("copying a disk")?;
    let spec = Spec {
        disks: vec![bench.medium(), disk.clone(), neighbour.clone()],
        ..Spec::default()
    };
    let mut guide = Guide::start(&spec, &bench.folder, Keys::Keyboard)?;
    no_text_before_picture(&mut guide.machine)?;
    guide.wait_for_welcome()?;
    check_quiet(&guide.machine)?;
    guide.enter()?;
    let page = guide.wait_for("Choose the disk for TruthDB")?;
    ensure!(
        page.contains("a partition table with 2 partitions, NTFS, ext4"),
        "what is on the other disk is not shown:\n{page}"
    );
    ensure!(
        !page.lines().any(|line| line.starts_with("> ")),
        "a disk is chosen for nobody:\n{page}"
    );
    guide.mark("TDB-VIRTIO-1")?;
    guide.enter()?;
    guide.confirm()?;
    guide.wait_for("[x] Test the disk")?;
    let page = guide.wait_for_end("TruthDB is installed")?;
    ensure!(
        page.contains("registered with the firmware"),
        "the boot entry is not registered:\n{page}"
    );
    let secrets = Secrets::on(&page)?;
    // The same machine, with the variables that the installer wrote, starts from its disk.
    let (mut machine, client) = bench.restarted(guide, &secrets)?;
    only_the_token_opens(&client)?;
    for number in 1..5 {
        client.append("orders", number)?;
    }
    machine.wait_for_serial("Serving.", BOOT)?;
    machine.keep_screen("console")?;
    machine.pull_the_plug()?;
    same(&neighbour.path, &untouched)
        .context("the disk that was not chosen has been written to")?;
    after_power_cut(&bench, &disk, &secrets)?;
    reinstall(&bench, disk, &secrets)
}

/// Another token, none, and another certificate.
pub(crate) fn only_the_token_opens(client: &Client) -> Result<()> {
    let stranger = Client {
        token: "tdb_0000".into(),
        ..client.clone()
    };
    ensure!(
        stranger.append("orders", 9).is_err() && stranger.read("orders").is_err(),
        "a token that nobody has made is taken"
    );
    let nobody = Client {
        token: String::new(),
        ..client.clone()
    };
    ensure!(nobody.read("orders").is_err(), "no token is needed");
    let other = Client {
        fingerprint: "00".repeat(32),
        ..client.clone()
    };
    ensure!(
        other.read("orders").is_err(),
        "another certificate is trusted"
    );
    Ok(())
}

/// Nothing but the firmware's own lines and pictures until the installer draws.
fn no_text_before_picture(machine: &mut Machine) -> Result<()> {
    machine.wait_for_serial("BdsDxe: starting", BOOT)?;
    let mut most_lines = 0;
    let mut kept = false;
    machine.wait("the installer draws", BOOT, |machine| {
        let screen = machine.screen()?;
        most_lines = most_lines.max(screen.console_lines());
        if !kept && screen.is_splash() {
            machine.keep_screen("splash")?;
            kept = true;
        }
        let serial = machine.serial();
        let said = serial.rsplit("BdsDxe: starting").next().unwrap_or_default();
        Ok((said.contains("TruthDB") && screen.is_drawn()).then_some(()))
    })?;
    ensure!(kept, "the splash was not seen");
    ensure!(
        most_lines <= FIRMWARE_LINES,
        "{most_lines} lines of console text were on the screen"
    );
    Ok(())
}

/// Started from the disk with fresh variables: by the fallback path, as after a battery that is empty.
fn after_power_cut(bench: &Bench<'_>, disk: &Disk, secrets: &Secrets) -> Result<()> {
    let spec = Spec {
        disks: vec![disk.clone()],
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, &bench.folder)?;
    let client = bench.client(&machine, secrets);
    wait_for_append(&mut machine, &client, "orders", 5)?;
    check_events(&client, "orders", 6)?;
    check_quiet(&machine)?;
    machine.press_power()?;
    machine.wait_for_end(STOP)
}

/// The medium again, by the serial line: the system is replaced, tokens and events stay.
fn reinstall(bench: &Bench<'_>, disk: Disk, secrets: &Secrets) -> Result<()> {
    let spec = Spec {
        disks: vec![bench.medium(), disk],
        ..Spec::default()
    };
    let mut guide = Guide::start(&spec, &bench.folder, Keys::Serial)?;
    guide.wait_for_welcome()?;
    guide.choose("TDB-VIRTIO-1")?;
    guide.wait_for("There is a TruthDB on this disk")?;
    guide.enter()?;
    guide.wait_for("Replace the system, and keep the data")?;
    guide.enter()?;
    guide.wait_for_end("The system was replaced, and the data kept")?;
    guide.machine.eject(0)?;
    guide.enter()?;
    let mut machine = guide.machine;
    let client = bench.client(&machine, secrets);
    wait_for_append(&mut machine, &client, "orders", 6)?;
    check_events(&client, "orders", 7)
}

/// Seconds of 2033-01-01, which the time server of the test tells.
const TIME_SERVER_S: u64 = 1_988_150_400;
/// Seconds of 2031-01-01, which it tells afterwards.
const TIME_SERVER_EARLIER_S: u64 = 1_924_992_000;

/// Nobody there: no screen, no keyboard; two disks of 4096-byte sectors, with noise on them; answers on a stick, and a
/// medium that stays in and comes first. The node then has the fixed address and the time server of the answers, a
/// clock that was never set, and is installed once.
pub(crate) fn unattended(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "install-unattended")?;
    let time = TimeServer::start(TIME_SERVER_S)?;
    let mut disks = Vec::new();
    for name in ["other", "disk"] {
        let mut disk = bench.disk(name, DISK_BYTES, Bus::Nvme)?;
        disk.sector_bytes = 4096;
        // Something old, all over the beginning.
        overwrite(&disk.path, 0, 4 << 20, 0xa5)?;
        disks.push(disk);
    }
    let stick = bench.answers(&format!(
        "disk = \"TDB-NVME-3\"\nwipe = true\nfinish = \"reboot\"\nhostname = \"node-7\"\n\
         address = \"10.0.2.77/24\"\ngateway = \"10.0.2.2\"\ndns = \"10.0.2.3\"\npartitions = 2\n\
         time_server = \"10.0.2.2:{}\"\n",
        time.port()
    ))?;
    let [other, disk]: [Disk; 2] = disks.try_into().map_err(|_| anyhow::anyhow!("two disks"))?;
    let untouched = bench.folder.join("untouched.qcow2");
    std::fs::copy(&other.path, &untouched).context("copying a disk")?;
    let spec = Spec {
        screen: false,
        cpus: 1,
        // Linux takes what QEMU's clock says of 1970 for 2070; this is as far from being set.
        clock: Some("2000-01-01T00:00:00"),
        guest_address: Some("10.0.2.77"),
        disks: vec![bench.medium(), stick, other.clone(), disk],
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, &bench.folder)?;
    // The page is there for a moment only.
    let secrets = machine.wait("the installation ends", INSTALL, |machine| {
        Ok(Secrets::on(&plain(&machine.serial())).ok())
    })?;
    ensure!(
        plain(&machine.serial()).contains("The machine's clock is not set"),
        "a clock of 2000 is taken for one that is set"
    );
    let client = bench.client(&machine, &secrets);
    configured(&mut machine, &client)?;
    time.set(TIME_SERVER_EARLIER_S);
    // The firmware tries the medium first. It finds its own work, and sends the machine to the disk.
    machine.reset()?;
    machine.wait_for_serial("is on this disk already", BOOT)?;
    machine.wait_for_serial("2031-01-01", BOOT)?;
    wait_for_append(&mut machine, &client, "orders", 3)?;
    check_events(&client, "orders", 4)?;
    check_times(&client, "orders")?;
    machine.pull_the_plug()?;
    same(&other.path, &untouched).context("the disk that was not named has been written to")
}

fn configured(machine: &mut Machine, client: &Client) -> Result<()> {
    wait_for_append(machine, client, "orders", 0)?;
    machine.wait_for_serial("node-7", BOOT)?;
    machine.wait_for_serial("10.0.2.77/24", BOOT)?;
    // The clock is set by the time server: the console shows the year.
    machine.wait_for_serial("2033-01-01", BOOT)?;
    for number in 1..3 {
        client.append("orders", number)?;
    }
    check_events(client, "orders", 3)?;
    check_times(client, "orders")
}

/// The clock was set forward, then back: timestamps never ran backwards, and the first of them are of the time that the
/// server told.
fn check_times(client: &Client, stream: &str) -> Result<()> {
    let events = client.read(stream)?;
    let times = events.iter().map(|event| event["timestamp_ns"].as_u64());
    let times: Option<Vec<u64>> = times.collect();
    let times = times.context("an event without its timestamp")?;
    ensure!(times.is_sorted(), "timestamps run backwards: {times:?}");
    ensure!(
        times
            .last()
            .is_some_and(|last| last / 1_000_000_000 >= TIME_SERVER_S),
        "the clock was not set by the time server: {times:?}"
    );
    Ok(())
}

/// Everything that goes wrong with disks, in one boot; then the power is cut in the middle, and a rerun just works.
pub(crate) fn bad_disks(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "install-bad-disks")?;
    let small = bench.disk("small", 2 << 30, Bus::Virtio)?;
    let failing = failing_disk(&bench.folder)?;
    let vanishing = bench.disk("vanishing", DISK_BYTES, Bus::Scsi)?;
    let usb = bench.disk("usb", DISK_BYTES, Bus::UsbDisk)?;
    let mut protected = bench.disk("protected", DISK_BYTES, Bus::Virtio)?;
    protected.read_only = true;
    let good = bench.disk("good", DISK_BYTES, Bus::Virtio)?;
    write(&good.path, 512, &old_lvm())?;
    write_old_raid(&good.path, DISK_BYTES)?;
    let logs = bench.stick("logs", "LOGS", "readme.txt", b"for logs")?;
    let disks = [
        small,
        failing,
        vanishing,
        protected,
        good.clone(),
        logs.clone(),
        usb,
    ];
    let spec = Spec {
        disks: [vec![bench.medium()], disks.to_vec()].concat(),
        ..Spec::default()
    };
    let mut guide = Guide::start(&spec, &bench.folder, Keys::Serial)?;
    guide.wait_for_welcome()?;
    guide.enter()?;
    let first = guide.wait_for("Choose the disk for TruthDB")?;
    ensure!(
        !first.lines().any(|line| line.starts_with("> ")),
        "a disk is chosen for nobody:\n{first}"
    );
    // The small one, the protected one and the one on USB say why. USB comes up last.
    guide.look_again_until("Not offered: the installed system does not start from USB")?;
    let page = guide.all_disks()?;
    for text in [
        "Not offered: it is too small",
        "Not offered: it is write-protected",
        "LVM",
        "Linux RAID",
    ] {
        ensure!(page.contains(text), "{text:?} is on no page:\n{page}");
    }
    guide.mark("TDB-VIRTIO-2")?;
    guide.enter()?;
    guide.confirm()?;
    let page = guide.wait_for_error_and_export("LOGS")?;
    println!(
        "      install-bad-disks: a disk that cannot be written: {}",
        summary(&page)
    );
    guide.choose("TDB-SCSI-3")?;
    guide.confirm()?;
    // While it is written to. Before that, it would be missed when it is looked at again.
    guide.wait_for("[x] Erase what was there")?;
    guide.machine.unplug(3)?;
    let page = guide.wait_for_error()?;
    println!(
        "      install-bad-disks: a disk that vanishes: {}",
        summary(&page)
    );
    ensure!(
        page.contains("is no longer there"),
        "a disk that vanished is not said to be gone:\n{page}"
    );
    guide.choose("TDB-VIRTIO-5")?;
    guide.confirm()?;
    // In the middle of what is written.
    guide.wait_for("[x] ")?;
    guide.machine.pull_the_plug()?;
    // What was exported was on the stick before that was said.
    let text = answers::text_on(&logs.path, "truthdb-logs-1.txt")?;
    let words = [
        "TDB-VIRTIO-2",
        "TDB-VIRTIO-5",
        "the plan was not carried out",
    ];
    let missing = words.into_iter().find(|word| !text.contains(word));
    ensure!(
        missing.is_none() && answers::text_on(&logs.path, "readme.txt")? == "for logs",
        "the exported logs say nothing of {missing:?}:\n{text}"
    );
    rerun(&bench, good)
}

/// All of it by the serial line: there is neither screen nor keyboard.
fn rerun(bench: &Bench<'_>, good: Disk) -> Result<()> {
    let spec = Spec {
        disks: vec![bench.medium(), good.clone()],
        screen: false,
        ..Spec::default()
    };
    let mut guide = Guide::start(&spec, &bench.folder, Keys::Serial)?;
    guide.wait_for_welcome()?;
    guide.choose("TDB-VIRTIO-1")?;
    guide.confirm()?;
    let page = guide.wait_for_end("TruthDB is installed")?;
    let (machine, _) = bench.restarted(guide, &Secrets::on(&page)?)?;
    machine.pull_the_plug()?;
    ensure!(
        !has_old_raid(&good.path, DISK_BYTES)?,
        "the old mirror is still on the disk"
    );
    Ok(())
}

/// The cause on a page of an error, in one line.
fn summary(page: &str) -> String {
    let lines = page.lines().filter(|line| line.starts_with("!! "));
    lines.collect::<Vec<_>>().join(" ")
}

/// A disk with one bad sector, in the middle of its system partition.
fn failing_disk(folder: &Path) -> Result<Disk> {
    let path = folder.join("failing.raw");
    let file = std::fs::File::create(&path).context("making a disk")?;
    file.set_len(DISK_BYTES).context("making a disk")?;
    let faults = folder.join("faults.conf");
    let text = "[inject-error]\nevent = \"write_aio\"\niotype = \"write\"\nerrno = \"5\"\n\
                sector = \"8192\"\nonce = \"off\"\n";
    std::fs::write(&faults, text).context("writing the faults")?;
    let mut disk = Disk::new(&path, "raw", Bus::Virtio);
    disk.faults = Some(faults);
    Ok(disk)
}

/// The second sector of a physical volume of LVM.
fn old_lvm() -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..8].copy_from_slice(b"LABELONE");
    sector[8..16].copy_from_slice(&1u64.to_le_bytes());
    sector[24..32].copy_from_slice(b"LVM2 001");
    sector
}

/// Firmware whose variables cannot be reached: the installation succeeds, and says what is missing. Its screen is the
/// framebuffer, as where DRM does not work.
pub(crate) fn no_variables(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "install-no-variables")?;
    let disk = bench.disk("disk", DISK_BYTES, Bus::Ahci)?;
    let image = artefacts.iso.with_file_name("TruthDBInstaller.efi");
    // Without firmware's tables and a network card there is nothing that a name could follow from.
    let command_line = "console=ttynull console=ttyS0,115200 rdinit=/sbin/init quiet loglevel=1 \
                        efi=noruntime truthdb.disk=TDB-SATA-0 truthdb.wipe=true \
                        truthdb.screen=framebuffer truthdb.hostname=node-8";
    let spec = Spec {
        disks: vec![disk],
        kernel: Some((image, command_line.to_owned())),
        network: false,
        ..Spec::default()
    };
    let mut guide = Guide::start(&spec, &bench.folder, Keys::Serial)?;
    let page = guide.wait_for_end("TruthDB is installed")?;
    ensure!(
        page.contains("by the disk's fallback path only"),
        "the missing boot entry is not said:\n{page}"
    );
    ensure!(
        guide.machine.screen()?.is_drawn(),
        "nothing is on the screen by the framebuffer"
    );
    Ok(())
}

/// Secure Boot with the vendor's keys: the firmware does not start what nobody has signed, and says so.
pub(crate) fn secure_boot(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "secure-boot")?;
    let spec = Spec {
        disks: vec![bench.medium()],
        firmware: Firmware::VendorKeys,
        network: false,
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, &bench.folder)?;
    machine.wait_for_serial("Access Denied", BOOT)?;
    machine.keep_screen("refused")?;
    ensure!(
        !machine.serial().contains("TruthDB is"),
        "an image that nobody has signed was started"
    );
    Ok(())
}

/// Secure Boot with a key of one's own, which has signed both images: installed, and the node starts from its disk.
pub(crate) fn own_keys(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "secure-boot-own-keys")?;
    let disk = bench.disk("disk", DISK_BYTES, Bus::Nvme)?;
    let spec = Spec {
        disks: vec![Disk::new(&artefacts.signed_iso, "raw", Bus::Cd), disk],
        firmware: Firmware::TestKeys,
        ..Spec::default()
    };
    let mut guide = Guide::start(&spec, &bench.folder, Keys::Serial)?;
    let page = guide.wait_for_welcome()?;
    ensure!(
        page.contains("Secure Boot on"),
        "Secure Boot is not said to be on:\n{page}"
    );
    guide.choose("TDB-NVME-1")?;
    guide.confirm()?;
    let page = guide.wait_for_end("TruthDB is installed")?;
    // The firmware checks what it starts from the disk as it did with the medium.
    let (_machine, client) = bench.restarted(guide, &Secrets::on(&page)?)?;
    check_events(&client, "orders", 1)
}
