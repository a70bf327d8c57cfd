//! Plans for many disks, compared with files. `TRUTHDB_BLESS=1` writes them anew.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use proptest::prelude::*;
use truthdb_installer::plan::{
    ByteRange, DATA_LABEL, ESP_BYTES, ESP_NAME, ESP_TYPE, FileContent, LINUX_TYPE, MIB, Mode,
    OldPartition, Plan, PlanError, Request, Runtime, Seed, TargetIdentity, TargetKind,
};

fn request(path: &str, size_bytes: u64, sector_bytes: u32) -> Request {
    Request {
        target: TargetIdentity {
            kind: TargetKind::Disk,
            path: path.into(),
            model: "Sample SSD 980".into(),
            serial: "S64DNX0R".into(),
            wwn: "eui.0025385b21404f3c".into(),
            size_bytes,
            sector_bytes,
            disk_sequence: Some(9),
        },
        mode: Mode::Install,
        seed: Seed::fixed([1; 32]),
        created_s: 1_767_225_600,
        esp_bytes: ESP_BYTES,
        runtime: Runtime {
            version: "0.1.0".into(),
            image: vec![0x4d; 1000].into(),
        },
        data_files: vec![FileContent {
            path: "config/truthdb.toml".into(),
            mode: 0o600,
            bytes: b"[data]\n".to_vec().into(),
        }],
        data_directories: vec![("log".into(), 0o755), ("server/tls".into(), 0o700)],
        old_partitions: Vec::new(),
        old_disk_id: None,
        boot_entry: true,
        answers: None,
    }
}

fn old(number: u32, first_sector: u64, last_sector: u64) -> OldPartition {
    OldPartition {
        number,
        first_sector,
        last_sector,
        kind: None,
        id: None,
        name: String::new(),
    }
}

fn check(name: &str, request: &Request) {
    let path = format!("{}/tests/plans/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let found = Plan::new(request).unwrap().text();
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{path} differs (TRUTHDB_BLESS=1 accepts the change):\n{found}"
    );
}

/// The request for the same disk after an installation, with the data to be kept.
fn kept(request: &Request, mode: Mode) -> Request {
    let plan = Plan::new(request).unwrap();
    let partitions = [&plan.esp, &plan.data].map(|partition| OldPartition {
        number: partition.number,
        first_sector: partition.first_sector,
        last_sector: partition.last_sector,
        kind: Some(partition.kind),
        id: Some(partition.id),
        name: partition.name.clone(),
    });
    Request {
        mode,
        seed: Seed::fixed([2; 32]),
        data_files: Vec::new(),
        data_directories: Vec::new(),
        old_partitions: partitions.to_vec(),
        old_disk_id: Some(plan.disk_id),
        ..request.clone()
    }
}

#[test]
fn plans_of_many_disks() {
    check("sata-8gb-512", &request("/dev/sda", 8_000_000_000, 512));
    check(
        "nvme-480gb-512",
        &request("/dev/nvme0n1", 480_103_981_056, 512),
    );
    check(
        "nvme-1920gb-4096",
        &request("/dev/nvme1n1", 1_920_383_410_176, 4096),
    );
    check(
        "sas-30tb-4096",
        &request("/dev/sdaa", 30_000_592_982_016, 4096),
    );
    let mut used = request("/dev/vda", 64 << 30, 512);
    used.old_partitions = vec![
        old(1, 2048, 1_050_623),
        old(2, 1_050_624, 67_108_863),
        // A table that claims more than the disk has.
        old(3, 67_108_864, u64::MAX),
        old(4, u64::MAX - 1, 5),
    ];
    check("virtio-64gib-used", &used);
    let disk = request("/dev/sda", 8_000_000_000, 512);
    check("sata-8gb-reinstall", &kept(&disk, Mode::ReinstallKeepData));
    check("sata-8gb-repair", &kept(&disk, Mode::RepairBoot));
}

#[test]
fn a_disk_is_named_by_its_serial_number_or_by_its_world_wide_name_in_any_spelling() {
    let named = |wwn: &str, name: &str| {
        let mut target = request("/dev/sda", 8_000_000_000, 512).target;
        target.wwn = wwn.into();
        target.is_named(name)
    };
    for (wwn, name) in [
        ("naa.5000c500a1b2c3d4", "0x5000c500a1b2c3d4"),
        ("naa.5000c500a1b2c3d4", "NAA.5000C500A1B2C3D4"),
        ("naa.5000c500a1b2c3d4", "wwn-0x5000c500a1b2c3d4"),
        ("naa.5000c500a1b2c3d4", "5000c500a1b2c3d4"),
        ("eui.0025385b21404f3c", "eui.0025385b21404f3c"),
        ("eui.0025385b21404f3c", "0x0025385B21404F3C"),
        (
            "uuid.123e4567-e89b-12d3-a456-426614174000",
            "123e4567e89b12d3a456426614174000",
        ),
        ("", "S64DNX0R"),
    ] {
        assert!(named(wwn, name), "{wwn} is not {name}");
    }
    for (wwn, name) in [
        ("naa.5000c500a1b2c3d4", "0x5000c500a1b2c3d5"),
        ("naa.5000c500a1b2c3d4", "c500a1b2c3d4"),
        ("naa.5000c500a1b2c3d4", "s64dnx0r"),
        ("naa.5000c500a1b2c3d4", ""),
        ("", ""),
        ("", "0x"),
        ("naa.", "0x"),
    ] {
        assert!(!named(wwn, name), "{wwn} is {name}");
    }
}

#[test]
fn what_cannot_be_planned_says_why() {
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = request("/dev/sda", 8_000_000_000, 512);
        change(&mut request);
        Plan::new(&request).unwrap_err()
    };
    let small = with(&|request| request.target.size_bytes = 2 << 30);
    assert!(matches!(small, PlanError::TooSmall { .. }), "{small}");
    assert_eq!(
        with(&|request| request.target.sector_bytes = 520),
        PlanError::SectorSize(520)
    );
    let esp = with(&|request| request.esp_bytes = 33 * MIB);
    assert!(matches!(esp, PlanError::Esp { .. }));
    let version = with(&|request| request.runtime.version = "1/2".into());
    assert_eq!(version, PlanError::Version("1/2".into()));
    let path = with(&|request| request.data_files[0].path = "../x".into());
    assert_eq!(path, PlanError::Path("../x".into()));
    let double = with(&|request| {
        let again = request.data_files[0].clone();
        request.data_files.push(again);
    });
    assert!(matches!(double, PlanError::DoublePath(_)));
    let system = with(&|request| request.runtime.image = vec![0; 65 << 20].into());
    assert!(matches!(system, PlanError::SystemTooLong { .. }));
    let system = with(&|request| {
        request.esp_bytes = 64 * MIB;
        request.runtime.image = vec![0; 20 << 20].into();
    });
    assert!(matches!(system, PlanError::SystemTooLarge { .. }));
    let nothing = with(&|request| {
        request.mode = Mode::ReinstallKeepData;
        request.data_files.clear();
    });
    assert!(matches!(nothing, PlanError::NothingToKeep(_)));
    let files = with(&|request| request.mode = Mode::RepairBoot);
    assert_eq!(files, PlanError::FilesOfKeptData);
}

#[test]
fn a_disk_with_somebody_elses_partitions_is_not_kept() {
    let base = request("/dev/sda", 8_000_000_000, 512);
    let whole = kept(&base, Mode::ReinstallKeepData);
    assert!(Plan::new(&whole).is_ok());
    let breakages: [&dyn Fn(&mut Request); 6] = [
        &|request| request.old_partitions.push(old(3, 1, 2)),
        &|request| request.old_partitions[0].name = "EFI".into(),
        &|request| request.old_partitions[1].kind = Some(ESP_TYPE),
        &|request| request.old_partitions[1].last_sector = u64::MAX,
        &|request| request.old_partitions[0].first_sector += 1,
        &|request| request.old_disk_id = None,
    ];
    for (at, breakage) in breakages.iter().enumerate() {
        let mut request = whole.clone();
        breakage(&mut request);
        let error = Plan::new(&request).unwrap_err();
        assert!(
            matches!(error, PlanError::NothingToKeep(_)),
            "{at}: {error}"
        );
    }
    assert_eq!((ESP_NAME, DATA_LABEL), ("truthdb-esp", "truthdb-data"));
    assert_ne!(ESP_TYPE, LINUX_TYPE);
}

proptest! {
    /// Whatever the disk is and held: partitions lie on MiB borders, apart and within the usable
    /// sectors; erased ranges are in order, apart and within the disk; the data is never erased when
    /// it is to be kept; and the plan follows from the request alone.
    #[test]
    fn plans_are_sound(
        size_bytes in (3u64 << 30)..(40u64 << 40),
        large_sectors in any::<bool>(),
        olds in prop::collection::vec((any::<u64>(), any::<u64>()), 0..6),
    ) {
        let sector_bytes = if large_sectors { 4096 } else { 512 };
        let mut request = request("/dev/sda", size_bytes, sector_bytes);
        request.old_partitions =
            (1..).zip(olds).map(|(number, (first, last))| old(number, first, last)).collect();
        let plan = Plan::new(&request).unwrap();
        prop_assert_eq!(&plan, &Plan::new(&request).unwrap());
        let (esp, data) = (plan.range(&plan.esp), plan.range(&plan.data));
        for range in [esp, data] {
            prop_assert!(range.start % MIB == 0 && range.end % MIB == 0);
        }
        prop_assert!(esp.start >= MIB && esp.end <= data.start && data.bytes() >= 1 << 30);
        // Behind the data lie the backup's entries and header.
        prop_assert!(data.end + 16_384 + u64::from(sector_bytes) <= size_bytes);
        let mut end = 0;
        for (at, ByteRange { start, end: next }) in plan.erase.iter().enumerate() {
            prop_assert!((at == 0 || *start > end) && next > start && *next <= size_bytes);
            end = *next;
        }
        prop_assert!(plan.erase[0].start == 0 && end > size_bytes - u64::from(sector_bytes));
        prop_assert!(plan.probes.iter().all(|at| at + MIB <= size_bytes));
        let keep = Plan::new(&kept(&request, Mode::ReinstallKeepData)).unwrap();
        prop_assert_eq!(keep.range(&keep.data), data);
        prop_assert!(keep.erase.iter().all(|range| range.start >= esp.start && range.end <= esp.end));
        prop_assert!(keep.probes.is_empty() && !keep.destroys_data());
    }
}
