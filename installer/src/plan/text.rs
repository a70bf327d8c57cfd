//! The plan as text: for the confirmation, for the log, and for the snapshots of the tests.

use std::fmt::Write as _;

use super::{DataPlan, Mode, Plan, PlannedFile, PlannedPartition, TargetKind};

impl Mode {
    /// What it is called on screens and in logs.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Mode::Install => "install, and erase everything on the disk",
            Mode::ReinstallKeepData => "reinstall the system, and keep the data",
            Mode::RepairBoot => "repair the boot files, and keep the data",
        }
    }
}

/// Bytes as disk makers count them, in powers of ten: `8.0 GB`. Rounded down.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut tenths = bytes / 100;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    if tenths >= 1000 {
        return format!("{} {}", tenths / 10, UNITS[unit]);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

impl Plan {
    /// All of the plan, one fact a line.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let target = &self.target;
        writeln!(out, "plan: {}", self.mode.title())?;
        match target.kind {
            TargetKind::Disk => writeln!(out, "disk: {}", target.path.display())?,
            TargetKind::Image => writeln!(out, "image: {}", target.path.display())?,
        }
        for (name, value) in [
            ("model", &target.model),
            ("serial", &target.serial),
            ("wwn", &target.wwn),
        ] {
            if !value.is_empty() {
                writeln!(out, "  {name}: {value}")?;
            }
        }
        writeln!(
            out,
            "  size: {} bytes ({}), sectors of {} bytes",
            target.size_bytes,
            human_bytes(target.size_bytes),
            target.sector_bytes
        )?;
        if let Some(sequence) = target.disk_sequence {
            writeln!(out, "  sequence: {sequence}")?;
        }
        writeln!(out, "  guid: {}", self.disk_id)?;
        for range in &self.erase {
            writeln!(out, "erase: bytes {} to {}", range.start, range.end - 1)?;
        }
        if !self.probes.is_empty() {
            let places: Vec<String> = self.probes.iter().map(u64::to_string).collect();
            writeln!(out, "probe: bytes at {}", places.join(" "))?;
        }
        self.write_partition(out, &self.esp, "FAT32")?;
        writeln!(out, "  volume: {:08x}", self.esp_volume_id)?;
        for file in &self.esp_files {
            write_file(out, file, false)?;
        }
        match &self.data_plan {
            DataPlan::Keep => self.write_partition(out, &self.data, "kept as it is")?,
            DataPlan::Format {
                filesystem_id,
                hash_seed,
                bytes_per_inode,
                directories,
                files,
            } => {
                self.write_partition(out, &self.data, "ext4")?;
                writeln!(out, "  uuid: {filesystem_id}, hash seed: {hash_seed}")?;
                writeln!(
                    out,
                    "  one inode for {} of data",
                    human_bytes(*bytes_per_inode)
                )?;
                for (path, mode) in directories {
                    writeln!(out, "  directory: {path}/ mode {mode:04o}")?;
                }
                for file in files {
                    write_file(out, file, true)?;
                }
            }
        }
        if let Some(entry) = &self.boot_entry {
            writeln!(out, "boot entry: {:?} starts {}", entry.name, entry.path)?;
            writeln!(
                out,
                "  BootOrder: it comes first, the others stay behind it"
            )?;
            writeln!(out, "  BootNext: it is started next")?;
        }
        writeln!(out, "stamped: {} s after 1970", self.created_s)
    }

    fn write_partition(
        &self,
        out: &mut String,
        partition: &PlannedPartition,
        content: &str,
    ) -> std::fmt::Result {
        let range = self.range(partition);
        writeln!(
            out,
            "partition {}: {}, {content}, sectors {} to {} ({})",
            partition.number,
            partition.name,
            partition.first_sector,
            partition.last_sector,
            human_bytes(range.bytes())
        )?;
        writeln!(out, "  type: {}, guid: {}", partition.kind, partition.id)
    }
}

fn write_file(out: &mut String, file: &PlannedFile, with_mode: bool) -> std::fmt::Result {
    let content = &file.content;
    write!(
        out,
        "  file: {} {} bytes",
        content.path,
        content.bytes.len()
    )?;
    if with_mode {
        write!(out, " mode {:04o}", content.mode)?;
    }
    writeln!(out, " sha256 {}", file.sha256)
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn sizes_are_said_as_on_the_box() {
        for (bytes, said) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (8_000_000_000, "8.0 GB"),
            (480_103_981_056, "480 GB"),
            (999_999_999_999, "999 GB"),
            (30_000_000_000_000, "30.0 TB"),
            (u64::MAX, "18446 PB"),
        ] {
            assert_eq!(human_bytes(bytes), said);
        }
    }
}
