//! The look at the machine, on folders that look like machines.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

mod sample;

use std::io::{Read as _, Write as _};
use std::path::Path;

use proptest::prelude::*;
use truthdb_installer::executor::{self, FileTarget, Tools};
use truthdb_installer::flow::{Event, Hardware, SecureBoot, Settings};
use truthdb_installer::node;
use truthdb_installer::plan::{DataPlan, ESP_BYTES_MIN_512, Mode, Plan, Sha256};
use truthdb_installer::platform::{System, disks, efi, machine, sticks};
use truthdb_installer::work::{self, Places};

/// A machine without anything.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "sys/block",
            "dev",
            "proc/self",
            "sys/class/net",
            "sys/class/dmi/id",
        ] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        Machine { folder }
    }

    fn system(&self) -> System {
        System::at(self.folder.path())
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// A disk of this many bytes, with a sparse file for its content.
    fn disk(&self, name: &str, bytes: u64) -> std::path::PathBuf {
        let at = format!("sys/block/{name}");
        self.write(&format!("{at}/size"), format!("{}\n", bytes / 512));
        self.write(&format!("{at}/queue/logical_block_size"), "512\n");
        self.write(&format!("{at}/ro"), "0\n");
        self.write(&format!("{at}/removable"), "0\n");
        self.write(&format!("{at}/dev"), "8:0\n");
        self.write(&format!("{at}/diskseq"), "3\n");
        let device = self.path(&format!("dev/{name}"));
        std::fs::File::create(&device)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        device
    }
}

const LARGE: u64 = 9_000_000_000;

#[test]
fn disks_are_told_with_identity_and_with_what_they_hold() {
    let machine = Machine::new();
    machine.disk("nvme0n1", LARGE);
    machine.write(
        "sys/block/nvme0n1/device/model",
        "Sample  SSD 980 PRO      \n",
    );
    machine.write("sys/block/nvme0n1/device/serial", " S5GX1  \n");
    machine.write("sys/block/nvme0n1/wwid", "eui.0025\n");
    let sda = machine.disk("sda", LARGE);
    machine.write("sys/block/sda/device/vpd_pg80", b"\x00\x80\x00\x08WD-00123");
    let mut content = vec![0u8; 0x480];
    content[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    content[0x478..0x47b].copy_from_slice(b"srv");
    std::fs::File::options()
        .write(true)
        .open(&sda)
        .unwrap()
        .write_all(&content)
        .unwrap();
    for name in ["loop0", "ram1", "sr0", "dm-0", "md0", "mmcblk0boot0"] {
        machine.disk(name, LARGE);
    }
    machine.disk("sdz", 0);
    let found = disks::all(&machine.system(), None);
    let names: Vec<_> = found
        .iter()
        .map(|disk| disk.identity.path.display().to_string())
        .collect();
    assert_eq!(names, ["/dev/nvme0n1", "/dev/sda"]);
    let identity = &found[0].identity;
    assert_eq!(
        (
            &identity.model[..],
            &identity.serial[..],
            &identity.wwn[..],
            identity.disk_sequence
        ),
        ("Sample SSD 980 PRO", "S5GX1", "eui.0025", Some(3))
    );
    assert_eq!(
        (found[0].refused.as_ref(), found[0].contents.len()),
        (None, 0)
    );
    assert_eq!(found[1].identity.serial, "WD-00123");
    assert_eq!(found[1].contents, ["ext4 \"srv\""]);
}

#[test]
fn a_disk_that_cannot_be_used_says_why() {
    let refusal = |change: &dyn Fn(&Machine)| {
        let machine = Machine::new();
        machine.disk("sda", LARGE);
        change(&machine);
        let found = disks::all(&machine.system(), None);
        found[0].refused.clone().unwrap_or_default()
    };
    let small = refusal(&|machine| drop(machine.disk("sda", 4_000_000_000)));
    assert!(small.contains("too small"), "{small}");
    let locked = refusal(&|machine| machine.write("sys/block/sda/ro", "1\n"));
    assert!(locked.contains("write-protected"), "{locked}");
    let on_usb = refusal(&|machine| {
        let [block, device] = ["sys/block/sda", "sys/devices/usb1"].map(|path| machine.path(path));
        std::fs::remove_dir_all(&block).unwrap();
        std::fs::create_dir_all(device).unwrap();
        std::os::unix::fs::symlink("../devices/usb1", block).unwrap();
        machine.disk("sda", LARGE);
    });
    assert!(on_usb.contains("does not start from USB"), "{on_usb}");
    let held = refusal(&|machine| machine.write("sys/block/sda/sda1/holders/dm-0", ""));
    assert!(held.contains("held by dm-0"), "{held}");
    let mounted = refusal(&|machine| {
        machine.write("sys/block/sda/sda1/dev", "8:1\n");
        machine.write(
            "proc/self/mountinfo",
            "36 35 8:1 / /srv rw,noatime - ext4 /dev/sda1 rw\n",
        );
    });
    assert!(mounted.contains("mounted at /srv"), "{mounted}");
    let swap = refusal(&|machine| {
        machine.write(
            "proc/swaps",
            "Filename Type Size\n/dev/sda partition 5 0 -2\n",
        );
    });
    assert!(swap.contains("swap"), "{swap}");
    let sectors =
        refusal(&|machine| machine.write("sys/block/sda/queue/logical_block_size", "520"));
    assert!(sectors.contains("520"), "{sectors}");
    let gone = refusal(&|machine| std::fs::remove_file(machine.path("dev/sda")).unwrap());
    assert!(gone.contains("cannot be opened"), "{gone}");
    // Shorter than sysfs says: unreadable where it matters, and told, not fatal.
    let torn = refusal(&|machine| {
        std::fs::File::create(machine.path("dev/sda")).unwrap();
    });
    assert!(torn.contains("cannot be read"), "{torn}");
    let medium = refusal(&|machine| write_iso_label(&machine.path("dev/sda")));
    assert!(medium.contains("this installer"), "{medium}");
    let paths = refusal(&|machine| {
        machine.disk("sdb", LARGE);
        for name in ["sda", "sdb"] {
            machine.write(&format!("sys/block/{name}/device/wwid"), "naa.5000\n");
        }
    });
    assert!(paths.contains("several paths"), "{paths}");
}

#[test]
fn an_installed_disk_is_recognised_with_its_version_and_can_be_the_boot_medium() {
    let machine = Machine::new();
    let bytes = 1400 << 20;
    let device = machine.disk("vda", bytes);
    let mut request = sample::request(&sample::disk(0), Mode::Install);
    request.target.size_bytes = bytes;
    request.esp_bytes = ESP_BYTES_MIN_512;
    request.answers = Some(Sha256::of(b"answers"));
    let plan = Plan::new(&request).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut target = FileTarget::open_image(&device).unwrap();
    executor::run(
        &plan,
        &mut target,
        &Tools::of_system(scratch.path()),
        &mut |_| (),
    )
    .unwrap();
    let found = disks::all(&machine.system(), None);
    let truthdb = found[0].truthdb.as_ref().unwrap();
    assert_eq!(truthdb.version.as_deref(), Ok("0.1.0"));
    assert_eq!(truthdb.answers, request.answers);
    assert!(truthdb.is_done(Sha256::of(b"answers")) && !truthdb.is_done(Sha256::of(b"others")));
    assert!(
        found[0]
            .contents
            .contains(&"ext4 \"truthdb-data\"".to_owned()),
        "{:?}",
        found[0].contents
    );
    assert_eq!(found[0].disk_id, Some(plan.disk_id));
    let booted = disks::all(&machine.system(), Some(plan.esp.id));
    assert_eq!(
        booted[0].refused.as_deref(),
        Some("it holds this installer")
    );
    // What is written last is missing, as after a power cut: no node, and no answers that were carried out.
    let file = std::fs::File::options().write(true).open(&device).unwrap();
    for start in [0, plan.range(&plan.esp).start] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], start).unwrap();
    }
    let found = disks::all(&machine.system(), None);
    let truthdb = found[0].truthdb.as_ref().unwrap();
    assert!(
        truthdb.is_cut_off(Sha256::of(b"any")) && truthdb.answers.is_none(),
        "{truthdb:?}"
    );
    // A node that has run looks the same when something wrote over the beginning of its disk; its data is there.
    let mounted_at = plan.range(&plan.data).start + 1024 + 0x2c;
    std::os::unix::fs::FileExt::write_all_at(&file, &[1], mounted_at).unwrap();
    let found = disks::all(&machine.system(), None);
    let truthdb = found[0].truthdb.as_ref().unwrap();
    assert!(!truthdb.is_cut_off(Sha256::of(b"any")), "{truthdb:?}");
    // Without a file system nothing says that it never ran.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 2048], mounted_at - 0x2c).unwrap();
    let found = disks::all(&machine.system(), None);
    let truthdb = found[0].truthdb.as_ref().unwrap();
    assert!(!truthdb.is_cut_off(Sha256::of(b"any")), "{truthdb:?}");
}

/// A FIFO that nobody writes to: whoever opens it to read waits, as before a disk that hangs.
fn hang(machine: &Machine, name: &str) -> std::path::PathBuf {
    let device = machine.disk(name, LARGE);
    std::fs::remove_file(&device).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    device
}

#[test]
fn a_disk_that_hangs_is_said_to_and_holds_no_other() {
    let machine = Machine::new();
    let device = hang(&machine, "sda");
    machine.write("sys/block/sda/device/model", "Sample SSD\n");
    machine.disk("sdb", LARGE);
    let file = [("truthdb-install.toml", "disk = \"S1\"\n")];
    stick(&machine, "sdc", b"TRUTHDB-CFG", &file);
    let system = machine.system();
    let deadline = std::time::Duration::from_millis(500);
    let found = disks::all_within(&system, None, deadline);
    let refused: Vec<_> = found.iter().map(|disk| disk.refused.as_deref()).collect();
    assert_eq!(refused[..2], [Some("it does not answer"), None]);
    // Which one it is is known without asking it.
    assert_eq!(found[0].identity.model, "Sample SSD");
    // The second look does not wait for it: its first thread still does.
    let began_ms = machine::monotonic_ms();
    let found = disks::all(&system, None);
    assert_eq!(found[0].refused.as_deref(), Some("it does not answer"));
    assert!(machine::monotonic_ms() - began_ms < 10_000);
    assert_eq!(sticks::answers(&system), Ok(Some(file[0].1.into())));
    // It comes back: whoever holds it open for writing lets it go on, to its end.
    drop(std::fs::File::options().write(true).open(&device).unwrap());
    std::fs::remove_file(&device).unwrap();
    machine.disk("sda", LARGE);
    let began_ms = machine::monotonic_ms();
    while disks::all(&system, None)[0].refused.is_some() {
        assert!(machine::monotonic_ms() - began_ms < 10_000);
    }
}

#[test]
fn a_stick_that_hangs_keeps_no_answers_back() {
    let machine = Machine::new();
    hang(&machine, "sda");
    let file = [("truthdb-install.toml", "disk = \"S1\"\n")];
    stick(&machine, "sdb", b"TRUTHDB-CFG", &file);
    let deadline = std::time::Duration::from_millis(500);
    let found = sticks::answers_within(&machine.system(), deadline);
    assert_eq!(found, Ok(Some(file[0].1.into())));
}

fn write_iso_label(device: &Path) {
    let mut content = vec![0u8; 0x8100];
    content[0x8001..0x8006].copy_from_slice(b"CD001");
    content[0x8028..0x8048].copy_from_slice(b"TRUTHDB                         ");
    let mut file = std::fs::File::options().write(true).open(device).unwrap();
    file.write_all(&content).unwrap();
}

#[test]
fn a_disk_with_an_old_medium_is_offered_when_another_one_was_started() {
    let machine = Machine::new();
    write_iso_label(&machine.disk("sda", LARGE));
    let medium = machine.disk("sdb", LARGE);
    let mut table = gptman::GPT::new_from(
        &mut std::fs::File::options()
            .read(true)
            .write(true)
            .open(&medium)
            .unwrap(),
        512,
        [7; 16],
    )
    .unwrap();
    table[1] = gptman::GPTPartitionEntry {
        partition_type_guid: [1; 16],
        unique_partition_guid: [2; 16],
        starting_lba: 2048,
        ending_lba: 4095,
        attribute_bits: 0,
        partition_name: "".into(),
    };
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&medium)
        .unwrap();
    table.write_into(&mut file).unwrap();
    let started = uuid::Uuid::from_bytes_le([2; 16]);
    let refused = |boot| {
        let found = disks::all(&machine.system(), boot);
        assert!(
            found[0]
                .contents
                .contains(&"ISO 9660 \"TRUTHDB\"".to_owned())
        );
        found
            .into_iter()
            .map(|disk| disk.refused)
            .collect::<Vec<_>>()
    };
    let this = Some("it holds this installer".to_owned());
    assert_eq!(refused(Some(started)), [None, this.clone()]);
    // Where the partition is not told, or not found, the label is all there is.
    assert_eq!(refused(None), [this.clone(), None]);
    assert_eq!(refused(Some(uuid::Uuid::from_u128(9))), [this, None]);
}

/// A plan for an empty disk of a machine, as a person orders it.
fn plan_for(machine: &Machine, settings: &Settings) -> Result<Plan, String> {
    machine.write("payload/TruthDBRuntime.efi", [7; 1000]);
    machine.write("payload/version", "0.1.0\n");
    let places = Places {
        system: machine.system(),
        payload: machine.path("payload/TruthDBRuntime.efi"),
        payload_version: machine.path("payload/version"),
        tools: Tools::of_system(machine.folder.path()),
    };
    let disk = sample::disk(0);
    match work::make_plan(&places, &disk, Mode::Install, settings, None) {
        Event::Planned(made) => made
            .map(|prepared| (*prepared.plan).clone())
            .map_err(|failure| failure.cause),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_node_keeps_how_it_was_installed() {
    let machine = Machine::new();
    machine.write(
        "proc/meminfo",
        "MemTotal: 16384000 kB\nMemAvailable: 12000000 kB\n",
    );
    machine.write("sys/class/dmi/id/product_name", "R7525\n");
    let plan = plan_for(&machine, &sample::settings()).unwrap();
    let DataPlan::Format { files, .. } = &plan.data_plan else {
        panic!("{:?}", plan.data_plan);
    };
    let file = |path: &str| files.iter().find(|file| file.content.path == path).unwrap();
    let text = |path: &str| String::from_utf8(file(path).content.bytes.to_vec()).unwrap();
    assert_eq!(file("log/install.txt").content.mode, 0o644);
    let record = text("log/install.txt");
    let all = plan.text();
    let listed = all.lines().filter(|line| line.contains("log/install.txt"));
    assert_eq!(listed.count(), 1);
    for line in all.lines().filter(|line| !line.contains("log/install.txt")) {
        assert!(record.contains(line), "{line} is missing in {record}");
    }
    for known in [
        "system: 0.1.0",
        "machine: R7525",
        "a person",
        "without this file",
    ] {
        assert!(record.contains(known), "{known} is missing in {record}");
    }
    for secret in [
        "config/console-token",
        "server/tls/key.pem",
        "server/tokens.toml",
    ] {
        assert!(
            !text(secret)
                .lines()
                .any(|line| record.contains(line.trim()) && line.len() > 20)
        );
    }
    let origin = |clock_s| {
        let mut hardware = look(&machine);
        hardware.clock_s = clock_s;
        let origin = node::Origin {
            hardware: &hardware,
            version: "0.1.0",
            answers: None,
        };
        node::record(&origin, "plan: install\n").bytes
    };
    assert_eq!(origin(1), origin(2));
}

#[test]
fn what_the_memory_does_not_hold_is_refused_when_it_is_planned() {
    let machine = Machine::new();
    machine.write(
        "proc/meminfo",
        "MemTotal: 1000000 kB\nMemAvailable: 700000 kB\n",
    );
    let mut settings = sample::settings();
    assert!(plan_for(&machine, &settings).is_ok());
    settings.partitions = 256;
    let said = plan_for(&machine, &settings).unwrap_err();
    assert!(
        said.contains("256 database partitions") && said.contains("at most 15"),
        "{said}"
    );
    settings.partitions = 8;
    machine.write(
        "proc/meminfo",
        "MemTotal: 1000000 kB\nMemAvailable: 60000 kB\n",
    );
    let said = plan_for(&machine, &settings).unwrap_err();
    assert!(said.contains("free memory"), "{said}");
}

fn look(machine: &Machine) -> Hardware {
    machine::look(
        &machine.system(),
        &machine.path("payload/TruthDBRuntime.efi"),
    )
}

#[test]
fn the_machine_is_told_and_what_makers_leave_in_place_of_names_is_not() {
    let machine = Machine::new();
    machine.write("sys/class/dmi/id/sys_vendor", "To Be Filled By O.E.M.\n");
    machine.write("sys/class/dmi/id/product_name", "R7525\n");
    machine.write(
        "sys/class/dmi/id/product_uuid",
        "4c4c4544-0051-3010-8057-b4c04f373533\n",
    );
    machine.write(
        "proc/meminfo",
        "MemTotal:       16384000 kB\nMemFree: 1 kB\n",
    );
    machine.write(
        "proc/cpuinfo",
        "processor\t: 0\nmodel name\t: AMD   EPYC 7313\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7313\n",
    );
    machine.write("sys/class/net/lo/address", "00:00:00:00:00:00\n");
    machine.write("sys/class/net/eth0/address", "52:54:00:AB:34:56\n");
    machine.write("sys/class/net/eth0/device/x", "");
    machine.write("sys/class/net/eth0/carrier", "1\n");
    machine.write(
        "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
        [6, 0, 0, 0, 1],
    );
    let found = look(&machine);
    assert_eq!(found.product, "R7525");
    assert_eq!((found.cpus, &found.cpu_model[..]), (2, "AMD EPYC 7313"));
    assert_eq!(found.memory_bytes, 16_384_000 * 1024);
    assert_eq!(
        (found.efi, found.efi_variables, found.secure_boot),
        (true, true, SecureBoot::On)
    );
    assert!(!found.system_is_signed);
    assert_eq!(found.network.len(), 1);
    assert_eq!(found.network[0].mac, "52:54:00:ab:34:56");
    assert!(found.uuid.is_some());
    machine.write(
        "sys/class/dmi/id/product_uuid",
        "ffffffff-ffff-ffff-ffff-ffffffffffff\n",
    );
    assert_eq!(look(&machine).uuid, None);
    let bare = look(&Machine::new());
    assert_eq!(
        (bare.efi, bare.secure_boot, bare.memory_bytes),
        (false, SecureBoot::Unknown, 0)
    );
}

const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

fn variable(machine: &Machine, name: &str) -> Vec<u8> {
    std::fs::read(machine.path(&format!("sys/firmware/efi/efivars/{name}-{GLOBAL}"))).unwrap()
}

fn entry(name: &str) -> Vec<u8> {
    let mut bytes = vec![7, 0, 0, 0, 1, 0, 0, 0, 4, 0];
    bytes.extend(name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    bytes.extend_from_slice(&[0x7f, 0xff, 4, 0]);
    bytes
}

#[test]
fn the_boot_entry_is_registered_first_and_others_are_left_alone() {
    let machine = Machine::new();
    let vars = "sys/firmware/efi/efivars";
    let plan = sample::prepared(&sample::disk(0), Mode::Install).plan;
    assert!(
        efi::register(&machine.system(), &plan)
            .unwrap_err()
            .contains("cannot be reached")
    );
    machine.write(&format!("{vars}/Boot0000-{GLOBAL}"), entry("Other OS"));
    machine.write(
        &format!("{vars}/BootOrder-{GLOBAL}"),
        [7, 0, 0, 0, 0, 0, 5, 0],
    );
    efi::register(&machine.system(), &plan).unwrap();
    assert_eq!(variable(&machine, "Boot0000"), entry("Other OS"));
    assert_eq!(
        variable(&machine, "BootOrder"),
        [7, 0, 0, 0, 1, 0, 0, 0, 5, 0]
    );
    let ours = variable(&machine, "Boot0001");
    let id = plan.esp.id.to_bytes_le();
    assert!(ours.windows(16).any(|window| window == id));
    let file: Vec<u8> = "\\EFI\\TruthDB\\truthdb-0.1.0.efi"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert!(ours.windows(file.len()).any(|window| window == file));
    // Again, for another disk: the same entry is used, and the order does not grow.
    let again = sample::prepared(&sample::disk(1), Mode::Install).plan;
    efi::register(&machine.system(), &again).unwrap();
    assert_eq!(
        variable(&machine, "BootOrder"),
        [7, 0, 0, 0, 1, 0, 0, 0, 5, 0]
    );
    assert!(!machine.path(&format!("{vars}/Boot0002-{GLOBAL}")).exists());
}

#[test]
fn the_machine_is_sent_to_its_disk_and_when_that_was_is_noted() {
    let machine = Machine::new();
    let system = machine.system();
    let mut disk = sample::disks().remove(2);
    assert!(efi::start_disk_next(&system, &disk).is_err());
    let vars = "sys/firmware/efi/efivars";
    machine.write(&format!("{vars}/Boot0000-{GLOBAL}"), entry("Medium"));
    machine.write(&format!("{vars}/BootOrder-{GLOBAL}"), [7, 0, 0, 0, 0, 0]);
    assert_eq!(look(&machine).sent_to_disk_s, None);
    efi::start_disk_next(&system, &disk).unwrap();
    assert_eq!(variable(&machine, "BootNext"), [7, 0, 0, 0, 1, 0]);
    assert_eq!(variable(&machine, "BootOrder"), [7, 0, 0, 0, 1, 0, 0, 0]);
    let now = look(&machine);
    assert!(now.is_back_soon(), "{:?}", now.sent_to_disk_s);
    // The entry is the one that the installation has made.
    let made = variable(&machine, "Boot0001");
    let mut of_medium = sample::request(&disk, Mode::ReinstallKeepData);
    of_medium.runtime.version = "0.0.9".into();
    efi::register(&system, &Plan::new(&of_medium).unwrap()).unwrap();
    assert_eq!(variable(&machine, "Boot0001"), made);
    // A system that is damaged is not started, and neither is one whose firmware keeps nothing.
    disk.truthdb.as_mut().unwrap().version = Err("damaged".into());
    assert!(efi::start_disk_next(&system, &disk).is_err());
    disk = sample::disks().remove(2);
    std::fs::remove_file(machine.path(&format!("{vars}/BootNext-{GLOBAL}"))).unwrap();
    std::fs::create_dir(machine.path(&format!("{vars}/BootNext-{GLOBAL}"))).unwrap();
    let reason = efi::start_disk_next(&system, &disk).unwrap_err();
    assert!(reason.contains("refuses"), "{reason}");
}

#[test]
fn firmware_that_refuses_is_told_and_nothing_more() {
    let machine = Machine::new();
    let vars = "sys/firmware/efi/efivars";
    machine.write(&format!("{vars}/Lang-{GLOBAL}"), [7, 0, 0, 0]);
    // A folder in the way of the variable: every write fails, as on full or locked firmware.
    std::fs::create_dir(machine.path(&format!("{vars}/Boot0000-{GLOBAL}"))).unwrap();
    machine.write(&format!("{vars}/BootOrder-{GLOBAL}"), [7, 0, 0, 0]);
    std::fs::remove_file(machine.path(&format!("{vars}/BootOrder-{GLOBAL}"))).unwrap();
    std::fs::create_dir(machine.path(&format!("{vars}/BootOrder-{GLOBAL}"))).unwrap();
    let plan = sample::prepared(&sample::disk(0), Mode::Install).plan;
    let reason = efi::register(&machine.system(), &plan).unwrap_err();
    assert!(reason.contains("refuses"), "{reason}");
}

#[test]
fn the_stub_says_which_partition_was_booted() {
    let machine = Machine::new();
    assert_eq!(efi::boot_partition(&machine.system()), None);
    let id = "123e4567-e89b-12d3-a456-426614174000";
    let mut bytes = vec![6, 0, 0, 0];
    bytes.extend(
        id.to_uppercase()
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes),
    );
    let name = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
    machine.write(&format!("sys/firmware/efi/efivars/{name}"), &bytes);
    assert_eq!(
        efi::boot_partition(&machine.system()).unwrap().to_string(),
        id
    );
    machine.write(&format!("sys/firmware/efi/efivars/{name}"), &bytes[..7]);
    assert_eq!(efi::boot_partition(&machine.system()), None);
}

/// A stick with one FAT volume from its first byte on.
fn stick(machine: &Machine, name: &str, label: &[u8; 11], files: &[(&str, &str)]) {
    let device = machine.disk(name, 40 << 20);
    machine.write(&format!("sys/block/{name}/removable"), "1\n");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .unwrap();
    let options = fatfs::FormatVolumeOptions::new().volume_label(*label);
    fatfs::format_volume(&file, options).unwrap();
    let volume = fatfs::FileSystem::new(&file, fatfs::FsOptions::new()).unwrap();
    for (path, text) in files {
        let mut out = volume.root_dir().create_file(path).unwrap();
        out.write_all(text.as_bytes()).unwrap();
    }
}

fn read_stick(machine: &Machine, name: &str, path: &str) -> String {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(machine.path(&format!("dev/{name}")));
    let volume = fatfs::FileSystem::new(file.unwrap(), fatfs::FsOptions::new()).unwrap();
    let mut text = String::new();
    volume
        .root_dir()
        .open_file(path)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

#[test]
fn answers_are_read_from_the_one_volume_for_them() {
    let machine = Machine::new();
    assert_eq!(sticks::answers(&machine.system()), Ok(None));
    stick(
        &machine,
        "sda",
        b"HOLIDAYS   ",
        &[("truthdb-install.toml", "no")],
    );
    assert_eq!(sticks::answers(&machine.system()), Ok(None));
    stick(
        &machine,
        "sdb",
        b"TRUTHDB-CFG",
        &[("truthdb-install.toml", "disk = \"S1\"\n")],
    );
    assert_eq!(
        sticks::answers(&machine.system()),
        Ok(Some("disk = \"S1\"\n".into()))
    );
    stick(&machine, "sdc", b"TRUTHDB-CFG", &[]);
    assert!(
        sticks::answers(&machine.system())
            .unwrap_err()
            .contains("several")
    );
    std::fs::remove_dir_all(machine.path("sys/block/sdb")).unwrap();
    assert!(
        sticks::answers(&machine.system())
            .unwrap_err()
            .contains("cannot be read")
    );
}

#[test]
fn a_stick_with_answers_that_comes_late_is_found() {
    let machine = Machine::new();
    let places = Places {
        system: machine.system(),
        ..Places::of_medium()
    };
    let events = work::probe_hardware(&places);
    assert!(
        matches!(&events[..], [Event::Hardware(Ok(_))]),
        "{events:?}"
    );
    let file = [("truthdb-install.toml", "disk = \"S1\"\n")];
    stick(&machine, "sdb", b"TRUTHDB-CFG", &file);
    let found = work::probe_answers(&places);
    assert!(
        matches!(&found, Some(Event::Answers(Ok(answers))) if answers.disk == "S1"),
        "{found:?}"
    );
    // At the start they come before the machine, which they are for.
    let events = work::probe_hardware(&places);
    assert!(
        matches!(&events[..], [Event::Answers(Ok(_)), Event::Hardware(Ok(_))]),
        "{events:?}"
    );
}

#[test]
fn logs_go_to_a_stick_under_a_new_name_and_never_to_a_disk() {
    let machine = Machine::new();
    assert!(
        sticks::export(&machine.system(), "truthdb-logs", "x")
            .unwrap_err()
            .contains("Plug one in")
    );
    stick(&machine, "sda", b"MY DISK    ", &[]);
    machine.write("sys/block/sda/removable", "0\n");
    stick(&machine, "sdb", b"TRUTHDB-ESP", &[]);
    assert!(sticks::export(&machine.system(), "truthdb-logs", "x").is_err());
    stick(
        &machine,
        "sdc",
        b"LOGS       ",
        &[("truthdb-logs-1.txt", "mine")],
    );
    let said = sticks::export(&machine.system(), "truthdb-logs", "what happened\n").unwrap();
    assert!(
        said.contains("LOGS") && said.contains("truthdb-logs-2.txt"),
        "{said}"
    );
    assert_eq!(
        read_stick(&machine, "sdc", "truthdb-logs-2.txt"),
        "what happened\n"
    );
    assert_eq!(read_stick(&machine, "sdc", "truthdb-logs-1.txt"), "mine");
}

fn flipped(path: &Path, flips: &[(u64, u8)]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    for (at, value) in flips {
        file.write_all_at(&[*value], *at).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Damaged tables and volumes are an answer or an error, never a panic.
    #[test]
    fn damaged_sticks_and_tables_are_survived(
        flips in prop::collection::vec((0u64..70_000, any::<u8>()), 1..40),
        sector in prop::collection::vec(any::<u8>(), 512),
    ) {
        let machine = Machine::new();
        stick(&machine, "sda", b"TRUTHDB-CFG", &[("truthdb-install.toml", "disk = \"S1\"\n")]);
        flipped(&machine.path("dev/sda"), &flips);
        let _ = sticks::answers(&machine.system());
        let _ = sticks::export(&machine.system(), "logs", "x");
        let _ = disks::all(&machine.system(), None);
        let mut whole: Vec<(u64, u8)> = (512u64..).zip(sector).collect();
        whole.extend((512u64..).zip(*b"EFI PART"));
        flipped(&machine.path("dev/sda"), &whole);
        let _ = disks::all(&machine.system(), None);
    }
}
