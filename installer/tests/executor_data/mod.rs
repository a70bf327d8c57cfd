//! The data partition: kept with whatever is wrong with it, made on the largest disks, and free of what was there.

use super::*;
use truthdb_installer::executor::Superblock;

/// Changes something in the file system of an image's data partition, as `debugfs` does.
fn debugfs(image: &Path, data: ByteRange, request: &str) {
    let device = format!("{}?offset={}", image.display(), data.start);
    judge("/sbin/debugfs", &["-w", "-R", request, &device]);
}

fn data_hash(plan: &Plan, directory: &Path) -> Sha256 {
    let copy = directory.join("data.copy");
    copy_range(&plan.target.path, plan.range(&plan.data), &copy);
    let hash = hash_of(&copy);
    std::fs::remove_file(copy).unwrap();
    hash
}

#[test]
fn data_with_errors_that_a_node_repairs_is_kept_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let plan = install(&path, 512, 1, directory.path());
    let data = plan.range(&plan.data);
    let mut target = FileTarget::open_image(&path).unwrap();
    let mut seed = 1;
    let mut keep = |expected: &str| {
        seed += 1;
        let before = data_hash(&plan, directory.path());
        let keep = Plan::new(&kept(&plan, Mode::ReinstallKeepData, seed)).unwrap();
        let report = execute(&keep, &mut target, directory.path()).unwrap();
        assert!(
            report.data_check.contains(expected),
            "{}",
            report.data_check
        );
        assert_eq!(report.data_check.lines().count(), 1);
        assert_eq!(before, data_hash(&plan, directory.path()));
        let found = read_esp(&mut target, keep.range(&keep.esp)).unwrap();
        assert!(found.is_complete && found.is_kept);
    };
    keep("kept; truthdb-data:");
    debugfs(&path, data, "sif /config links_count 7");
    keep("kept; it has errors");
    debugfs(&path, data, "feature needs_recovery");
    keep("kept; it was not shut down");
}

#[test]
fn where_there_is_no_data_nothing_is_kept_and_nothing_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let plan = install(&path, 512, 1, directory.path());
    let data = plan.range(&plan.data);
    let keep = Plan::new(&kept(&plan, Mode::RepairBoot, 2)).unwrap();
    let refused = |reason: &str| {
        let before = hash_of(&path);
        let mut target = FileTarget::open_image(&path).unwrap();
        let error = execute(&keep, &mut target, directory.path()).unwrap_err();
        assert!(matches!(error.cause, Cause::NoData(_)), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(error.changed, Changed::Nothing);
        assert_eq!(before, hash_of(&path));
    };
    debugfs(&path, data, "set_super_value volume_name other");
    refused("\"other\"");
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 4096], data.start).unwrap();
    refused("no ext4");
}

/// Whatever a plan says: a write into data that is kept is not made.
#[test]
fn a_plan_that_would_write_into_the_data_it_keeps_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let plan = install(&path, 512, 1, directory.path());
    let before = data_hash(&plan, directory.path());
    let data = plan.range(&plan.data);
    let mut keep = Plan::new(&kept(&plan, Mode::ReinstallKeepData, 2)).unwrap();
    keep.erase.push(ByteRange {
        start: data.start - 512,
        end: data.start + 512,
    });
    let mut target = FileTarget::open_image(&path).unwrap();
    let error = execute(&keep, &mut target, directory.path()).unwrap_err();
    assert!(matches!(error.cause, Cause::KeptData { .. }), "{error}");
    assert_eq!(error.changed, Changed::SystemOnly);
    assert_eq!(before, data_hash(&plan, directory.path()));
}

/// What is cut off while it is read back starts, and is told by what its system says of itself.
#[test]
fn an_installation_that_is_cut_off_at_the_end_is_told_from_a_node_whose_system_was_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let mut request = request(&path, 512, 1);
    request.answers = Some(Sha256::of(b"answers"));
    let fresh = Plan::new(&request).unwrap();
    let mut target = FileTarget::create_image(&path, DISK_BYTES).unwrap();
    let mut cut_off = |plan: &Plan, expected: Changed| {
        let mut faulty = Faulty::new(&mut target, usize::MAX);
        faulty.flip_at = Some(plan.range(&plan.esp).start + 3);
        let error = execute(plan, &mut faulty, directory.path()).unwrap_err();
        assert_eq!(
            (error.step, error.changed),
            (Step::Verify, expected),
            "{error}"
        );
        let said = error.changed.to_string();
        assert!(
            said.contains("may start") && !said.contains("does not boot"),
            "{said}"
        );
        assert!(bootable(&mut File::open(&path).unwrap()).is_some());
        read_esp(&mut target, plan.range(&plan.esp)).unwrap()
    };
    let found = cut_off(&fresh, Changed::NotVerified);
    assert!(!found.is_complete && !found.is_kept);
    assert_eq!(found.answers, request.answers);
    let mut keep = kept(&fresh, Mode::ReinstallKeepData, 2);
    keep.answers = request.answers;
    let keep = Plan::new(&keep).unwrap();
    let found = cut_off(&keep, Changed::SystemNotVerified);
    assert!(!found.is_complete && found.is_kept);
    let data = fresh.range(&fresh.data).start;
    assert!(Superblock::read(&mut target, data).unwrap().is_unused());
}

/// The disk is looked at once more when everything is prepared, which takes seconds.
#[test]
fn a_disk_that_is_changed_while_everything_is_prepared_is_not_written() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    let plan = Plan::new(&request(&path, 512, 1)).unwrap();
    let expected = plan.target.clone();
    let looks = AtomicUsize::new(0);
    let probe = Box::new(move |_: &Path| {
        let mut found = expected.clone();
        if looks.fetch_add(1, Ordering::Relaxed) > 0 {
            found.serial = "ANOTHER".into();
        }
        Ok(found)
    });
    let mut target = FileTarget::open_disk(&path, probe).unwrap();
    let error = execute(&plan, &mut target, directory.path()).unwrap_err();
    assert!(error.to_string().contains("ANOTHER"), "{error}");
    assert_eq!(
        (error.step, error.changed),
        (Step::Prepare, Changed::Nothing)
    );
    let mut first = [1; 4096];
    File::open(&path).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, [0; 4096]);
}

/// Backup superblocks of what was there are where `e2fsck` looks for ours: none of them may be the old one.
#[test]
fn no_old_file_system_is_left_where_a_repair_would_look_for_it() {
    const GROUP_BYTES: u64 = 128 * MIB;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let plan = Plan::new(&request(&path, 512, 1)).unwrap();
    let data = plan.range(&plan.data);
    let mut target = FileTarget::create_image(&path, DISK_BYTES).unwrap();
    let offset = format!("offset={}", data.start);
    let blocks = (data.bytes() / 4096).to_string();
    let image = path.to_str().unwrap();
    let old = [
        "-q", "-F", "-b", "4096", "-L", "old", "-E", &offset, image, &blocks,
    ];
    judge("/sbin/mke2fs", &old);
    let labels = || {
        let file = File::open(&path).unwrap();
        let mut found = Vec::new();
        for group in 0..data.bytes().div_ceil(GROUP_BYTES) {
            let at = data.start + group * GROUP_BYTES + if group == 0 { 1024 } else { 0 };
            let mut superblock = [0; 1024];
            file.read_exact_at(&mut superblock, at).unwrap();
            if superblock[0x38..0x3a] == [0x53, 0xef] {
                let label = superblock[0x78..0x88].split(|byte| *byte == 0).next();
                found.push(String::from_utf8_lossy(label.unwrap()).into_owned());
            }
        }
        found
    };
    let before = labels();
    assert!(before.len() > 3 && before.iter().all(|label| label == "old"));
    execute(&plan, &mut target, directory.path()).unwrap();
    let after = labels();
    assert_eq!(after.len(), before.len());
    assert!(
        after.iter().all(|label| label == "truthdb-data"),
        "{after:?}"
    );
    // Without its first superblock, what is found is the new file system, whole.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 4096], data.start).unwrap();
    let copy = directory.path().join("data.img");
    copy_range(&path, data, &copy);
    let copy = copy.to_str().unwrap();
    let repaired = Command::new("/sbin/e2fsck")
        .args(["-f", "-y", copy])
        .status();
    assert_eq!(repaired.unwrap().code(), Some(1));
    let said = judge("/sbin/debugfs", &["-R", "cat /config/truthdb.toml", copy]);
    assert!(said.contains("directory"), "{said}");
}

/// A disk that keeps what is not zero, and remembers how much lay in the scratch directory.
struct Thin<'a> {
    inner: FileTarget,
    scratch: &'a Path,
    scratch_bytes: u64,
    zeros: Vec<u8>,
    found: Vec<u8>,
}

impl Target for Thin<'_> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.scratch_bytes == 0 {
            use std::os::unix::fs::MetadataExt as _;
            let files = std::fs::read_dir(self.scratch)?.flatten();
            let blocks = files.map(|file| file.metadata().unwrap().blocks());
            self.scratch_bytes = blocks.sum::<u64>() * 512;
        }
        if bytes == &self.zeros[..bytes.len()] {
            self.found.resize(bytes.len(), 0);
            self.inner.read_at(offset, &mut self.found)?;
            if self.found == bytes {
                return Ok(());
            }
        }
        self.inner.write_at(offset, bytes)
    }
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn check_identity(&mut self, expected: &TargetIdentity) -> Result<(), String> {
        self.inner.check_identity(expected)
    }
    fn is_gone(&mut self, expected: &TargetIdentity) -> bool {
        self.inner.is_gone(expected)
    }
    fn path(&self) -> &Path {
        self.inner.path()
    }
}

/// The largest disks take descriptors and bitmaps in memory, and no zeros: the plan says how much.
#[test]
fn a_disk_of_30_tb_takes_the_memory_that_its_plan_says() {
    const BYTES: u64 = 30_000_592_982_016;
    // In memory, as on the installer; where that is small or absent, there is nothing to be shown.
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let free = rustix::fs::statvfs(directory.path()).unwrap();
    if free.f_bavail * free.f_frsize < 1500 * MIB || !Path::new("/sbin/mke2fs").exists() {
        eprintln!("not shown: there is no room in /dev/shm, or there are no tools");
        return;
    }
    let path = directory.path().join("disk.img");
    let scratch = directory.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let mut request = request(&path, 4096, 1);
    request.target.size_bytes = BYTES;
    let plan = Plan::new(&request).unwrap();
    let mut target = Thin {
        inner: FileTarget::create_image(&path, BYTES).unwrap(),
        scratch: &scratch,
        scratch_bytes: 0,
        zeros: vec![0; 4 << 20],
        found: Vec::new(),
    };
    let report = execute(&plan, &mut target, &scratch).unwrap();
    let (said, taken) = (plan.scratch_bytes(), target.scratch_bytes);
    assert!(
        taken <= said && said < taken + taken / 20,
        "{taken} of {said}"
    );
    assert!(said < 440 * MIB && plan.memory_bytes() < 520 * MIB);
    // The tables are written all the same, and read back.
    assert!(
        report.verified_bytes > 1300 * MIB,
        "{}",
        report.verified_bytes
    );
    assert!(report.data_check.contains("/35"), "{}", report.data_check);
}

#[test]
fn a_scratch_directory_without_room_is_said_with_the_figures() {
    let directory = tempfile::tempdir().unwrap();
    let mut request = request(&directory.path().join("disk.img"), 4096, 1);
    request.target.size_bytes = 1 << 60;
    let plan = Plan::new(&request).unwrap();
    let error = executor::check_room(&plan, &tools(directory.path())).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("needs") && said.contains("are free"),
        "{said}"
    );
}

#[test]
fn a_file_that_is_too_large_for_a_system_is_not_read_into_memory() {
    use std::io::Write as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("esp.img");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.set_len(300 * MIB).unwrap();
    fatfs::format_volume(&file, fatfs::FormatVolumeOptions::new()).unwrap();
    let volume = fatfs::FileSystem::new(&file, fatfs::FsOptions::new()).unwrap();
    let folder = volume
        .root_dir()
        .create_dir("EFI")
        .unwrap()
        .create_dir("TruthDB")
        .unwrap();
    let about = "version = \"1\"\nfile = \"EFI/TruthDB/large.efi\"\nsha256 = \"\"\n";
    folder
        .create_file("system.toml")
        .unwrap()
        .write_all(about.as_bytes())
        .unwrap();
    let mut large = folder.create_file("large.efi").unwrap();
    let piece = vec![0; MIB as usize];
    for _ in 0..65 {
        large.write_all(&piece).unwrap();
    }
    drop((large, folder));
    volume.unmount().unwrap();
    let mut target = FileTarget::open_image(&path).unwrap();
    let whole = ByteRange {
        start: 0,
        end: 300 * MIB,
    };
    let reason = read_esp(&mut target, whole).unwrap_err();
    assert!(
        reason.contains("large.efi") && reason.contains("more than 67108864 bytes"),
        "{reason}"
    );
}
