//! What the kernel counts: CPU time and memory of a process, and the device below a directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// A folder of its own below the one to measure in; removed at the end.
pub(super) struct WorkDir(PathBuf);

impl WorkDir {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// `environment`: it cannot be made.
    pub(super) fn new(parent: &Path) -> Result<WorkDir, Failure> {
        let parent = std::path::absolute(parent)
            .map_err(|error| Failure::environment("the path of --dir is not usable", error))?;
        let name = format!("truthdb-bench-{}-{:08x}", std::process::id(), random());
        let path = parent.join(name);
        std::fs::create_dir(&path).map_err(|error| {
            Failure::environment(format!("cannot make the folder {}", path.display()), error)
        })?;
        Ok(WorkDir(path))
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            crate::cmd::output::note(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

/// Random enough for names and for payloads that do not compress.
pub(super) fn random() -> u32 {
    // Without randomness the process id in the name is what tells folders apart.
    getrandom::u32().unwrap_or(0)
}

/// CPU time that the living threads of a process have used, nanoseconds. `None`: it is gone, or the
/// kernel does not count it.
pub(super) fn cpu_ns(process: &str) -> Option<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(format!("/proc/{process}/task")).ok()? {
        let path = entry.ok()?.path().join("schedstat");
        // A thread may end between listing and reading.
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        total += text.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(total)
}

/// CPU time of this thread, nanoseconds.
pub(super) fn thread_cpu_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// CPU time of this process, threads that have ended included, nanoseconds. Counted in steps of 10 ms.
pub(super) fn process_cpu_ns() -> Option<u64> {
    /// What the kernel counts in for programs, whatever it counts in itself.
    const TICK_NS: u64 = 10_000_000;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) * TICK_NS)
}

/// Resident memory of a process in MiB.
pub(super) fn rss_mib(process: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Counters of a block device since boot.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceCounters {
    /// Bytes written, by everybody.
    pub written_bytes: u64,
    /// Cache flushes completed.
    pub flushes: u64,
}

/// The block device below a directory.
#[derive(Debug, Clone)]
pub(super) struct Device {
    stat: PathBuf,
    /// Its name in the kernel.
    pub name: String,
}

impl Device {
    /// Finds it. `None`: the file system has no block device of its own that counts.
    pub(super) fn below(directory: &Path) -> Option<Device> {
        let number = std::fs::metadata(directory).ok()?.dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let folder = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        // Flushes are counted for whole disks only.
        let whole = if folder.join("partition").exists() {
            folder.parent()?
        } else {
            &folder
        };
        let name = whole.file_name()?.to_str()?.to_owned();
        let device = Device {
            stat: whole.join("stat"),
            name,
        };
        device.counters().map(|_| device)
    }

    /// Its counters now.
    pub(super) fn counters(&self) -> Option<DeviceCounters> {
        let text = std::fs::read_to_string(&self.stat).ok()?;
        let fields: Vec<u64> = text
            .split_ascii_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        // Sectors of this file are 512 bytes, whatever the device's are.
        Some(DeviceCounters {
            written_bytes: fields.get(6)? * 512,
            flushes: *fields.get(15)?,
        })
    }
}

/// What the figures depend on besides the program: for the heading and for `--json`.
pub(super) fn description(directory: &Path) -> serde_json::Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("", |(_, model)| model.trim());
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpus": cpus,
        "cpu": model,
        "load_average": read("/proc/loadavg"),
        "device": Device::below(directory).map(|device| device.name),
        "date": jiff::Timestamp::now().to_string(),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_cpu_time_and_memory() {
        assert!(super::cpu_ns("self").unwrap() > 0);
        assert!(super::rss_mib("self").unwrap() > 0.5);
        let before = super::process_cpu_ns().unwrap();
        let mut x = 1u64;
        while super::process_cpu_ns().unwrap() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
    }
}
