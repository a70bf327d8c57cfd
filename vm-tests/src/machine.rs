//! A machine while it runs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::http;
use crate::picture::Picture;
use crate::qmp::Qmp;
use crate::spec::{Firmware, Spec, Surroundings};
use crate::wait::Deadline;

/// Bytes of the serial line in a report.
const TAIL_BYTES: usize = 3000;
/// Emulation is slower than a processor by about so much, on a busy machine.
const EMULATION_STRETCH: u32 = 10;
/// How long QEMU may take to open its control socket.
const QMP_WAIT: Duration = Duration::from_secs(60);
/// The firmware of a distribution.
struct FirmwareFiles {
    code: &'static str,
    variables: &'static str,
    /// With Secure Boot.
    secure_code: &'static str,
    /// Secure Boot's variables with the keys of vendors.
    vendor_variables: &'static str,
    /// The same with a key for tests; not every distribution has one.
    test_variables: Option<&'static str>,
}

const FIRMWARE: [FirmwareFiles; 2] = [
    FirmwareFiles {
        code: "/usr/share/OVMF/OVMF_CODE_4M.fd",
        variables: "/usr/share/OVMF/OVMF_VARS_4M.fd",
        secure_code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        vendor_variables: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
        test_variables: Some("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"),
    },
    FirmwareFiles {
        code: "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        variables: "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
        secure_code: "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd",
        vendor_variables: "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
        test_variables: None,
    },
];

/// A running QEMU. It ends with this value.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: Qmp,
    folder: PathBuf,
    ports: [u16; 2],
    stretch: u32,
    screens: u32,
    serial: UnixStream,
}

impl Machine {
    /// Starts a machine whose sockets, logs and firmware variables go into a folder of its own.
    ///
    /// # Errors
    ///
    /// QEMU or the firmware is not installed, or QEMU refuses the spec; it says why.
    pub fn start(spec: &Spec, folder: &Path) -> Result<Machine> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for stale in ["qmp", "serial", "serial.log", "qemu.log"] {
            let path = folder.join(stale);
            if path.exists() {
                std::fs::remove_file(&path).context("removing what an earlier machine left")?;
            }
        }
        let [code, variables] = firmware(spec.firmware)?;
        let own = folder.join("variables.fd");
        std::fs::copy(variables, &own).context("copying the firmware's variables")?;
        let ports = free_ports()?;
        let acceleration = acceleration();
        let arguments = spec.arguments(&Surroundings {
            acceleration,
            code: Path::new(code),
            variables: &own,
            folder,
            ports,
        })?;
        let line =
            UnixListener::bind(folder.join("serial")).context("listening to a serial line")?;
        let log = std::fs::File::create(folder.join("qemu.log")).context("making a log")?;
        let child = Command::new("qemu-system-x86_64")
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing a log")?)
            .stderr(log)
            .spawn();
        let mut child = child.context(
            "cannot start qemu-system-x86_64: `apt-get install qemu-system-x86` brings it \
             (`cargo xtask vm` installs what is missing by itself)",
        )?;
        let qmp = connect(&mut child, folder)?;
        // QEMU connects before it opens its control socket.
        let (serial, _) = line.accept().context("waiting for a serial line")?;
        let mut said = serial.try_clone().context("sharing a serial line")?;
        let mut kept = std::fs::File::create(folder.join("serial.log")).context("making a log")?;
        std::thread::spawn(move || std::io::copy(&mut said, &mut kept));
        let stretch = if acceleration == "kvm" {
            1
        } else {
            EMULATION_STRETCH
        };
        Ok(Machine {
            child,
            qmp,
            folder: folder.to_owned(),
            ports,
            stretch,
            screens: 0,
            serial,
        })
    }

    /// The port of the host behind which port 7433 of the machine is.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// The port of the host behind which port 7434 of the machine is.
    #[must_use]
    pub fn native_port(&self) -> u16 {
        self.ports[1]
    }

    /// A deadline in time of a real processor, stretched for emulation.
    #[must_use]
    pub fn deadline(&self, time: Duration) -> Deadline {
        Deadline::after(time * self.stretch)
    }

    /// Everything that came out of the serial line.
    #[must_use]
    pub fn serial(&self) -> String {
        let bytes = std::fs::read(self.folder.join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the serial line has said a text.
    ///
    /// # Errors
    ///
    /// The deadline passed, or the machine ended; with a report.
    pub fn wait_for_serial(&mut self, text: &str, time: Duration) -> Result<()> {
        let what = format!("the serial line says {text:?}");
        self.wait(&what, time, |machine| {
            Ok(machine.serial().contains(text).then_some(()))
        })
    }

    /// Waits until `GET path` on the forwarded port answers 200; the body.
    ///
    /// # Errors
    ///
    /// As for [`Machine::wait_for_serial`].
    pub fn wait_for_http(&mut self, path: &str, time: Duration) -> Result<String> {
        let port = self.port();
        self.wait(&format!("GET {path} answers 200"), time, |_| {
            let answer = http::get(port, path);
            Ok(answer
                .ok()
                .filter(|answer| answer.status == 200)
                .map(|answer| answer.body))
        })
    }

    /// Waits until a condition has a value.
    ///
    /// # Errors
    ///
    /// As for [`Machine::wait_for_serial`], and those of the condition.
    pub fn wait<T>(
        &mut self,
        what: &str,
        time: Duration,
        mut condition: impl FnMut(&mut Machine) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = self.deadline(time);
        let outcome = deadline.until(|| {
            let value = condition(self)?;
            if value.is_none() && self.has_ended()? {
                bail!("QEMU ended while it was waited until {what}");
            }
            Ok(value)
        });
        match outcome {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                let waited = deadline.elapsed().as_secs();
                Err(self.report(&format!("{waited} seconds passed before {what}")))
            }
            Err(error) => Err(self.report(&format!("{error:#}"))),
        }
    }

    /// Waits until the machine has switched itself off, which ends QEMU.
    ///
    /// # Errors
    ///
    /// The deadline passed; with a report.
    pub fn wait_for_end(&mut self, time: Duration) -> Result<()> {
        let deadline = self.deadline(time);
        match deadline.until(|| Ok(self.has_ended()?.then_some(())))? {
            Some(()) => Ok(()),
            None => Err(self.report("the machine did not switch itself off")),
        }
    }

    /// Instructions that it has executed since power on, if its spec says that they are counted.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn instructions(&mut self) -> Result<u64> {
        let answer = self.qmp.run("query-replay", &json!({}))?;
        answer["icount"]
            .as_u64()
            .context("QEMU counts no instructions")
    }

    /// Times that its disks were told to make durable what was written.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn flushes(&mut self) -> Result<u64> {
        let answer = self.qmp.run("query-blockstats", &json!({}))?;
        let disks = answer.as_array().context("QEMU counts no flushes")?;
        let of_disk = |disk: &Value| disk["stats"]["flush_operations"].as_u64();
        Ok(disks.iter().filter_map(of_disk).sum())
    }

    /// Presses the power button.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn press_power(&mut self) -> Result<()> {
        self.qmp.run("system_powerdown", &json!({})).map(|_| ())
    }

    /// Presses the reset button.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp.run("system_reset", &json!({})).map(|_| ())
    }

    /// Presses keys together, by QEMU's names for them, and releases them.
    ///
    /// # Errors
    ///
    /// QEMU's: a key that it does not know.
    pub fn press(&mut self, keys: &[&str]) -> Result<()> {
        let key = |name: &&str| json!({ "type": "qcode", "data": name });
        let keys: Vec<_> = keys.iter().map(key).collect();
        self.qmp
            .run("send-key", &json!({ "keys": keys }))
            .map(|_| ())
    }

    /// Types a text on the machine's keyboard, as on one with the American layout.
    ///
    /// # Errors
    ///
    /// QEMU's, or a character that is on no key.
    pub fn type_keys(&mut self, text: &str) -> Result<()> {
        for c in text.chars() {
            let lower = c.to_ascii_lowercase().to_string();
            let key = match c {
                '-' => "minus",
                '_' => return self.press(&["shift", "minus"]),
                c if c.is_ascii_alphanumeric() => lower.as_str(),
                other => bail!("there is no key for {other:?}"),
            };
            if c.is_ascii_uppercase() {
                self.press(&["shift", key])?;
            } else {
                self.press(&[key])?;
            }
        }
        Ok(())
    }

    /// Types bytes on the serial line.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn type_serial(&mut self, bytes: &[u8]) -> Result<()> {
        self.serial
            .write_all(bytes)
            .context("typing on the serial line")
    }

    /// Takes the medium out of a drive.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn eject(&mut self, disk: usize) -> Result<()> {
        let arguments = json!({ "id": format!("dev{disk}"), "force": true });
        self.qmp.run("eject", &arguments).map(|_| ())
    }

    /// Pulls a disk out of the running machine.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn unplug(&mut self, disk: usize) -> Result<()> {
        let arguments = json!({ "id": format!("dev{disk}") });
        self.qmp.run("device_del", &arguments).map(|_| ())
    }

    /// What the screen shows.
    ///
    /// # Errors
    ///
    /// No screen.
    pub fn screen(&mut self) -> Result<Picture> {
        let path = self.folder.join("screen.ppm");
        self.qmp.run("screendump", &json!({ "filename": path }))?;
        let bytes = std::fs::read(&path).context("reading a screen")?;
        Picture::parse(&bytes)
    }

    /// Keeps what the screen shows as a file with a name, for people.
    ///
    /// # Errors
    ///
    /// No screen.
    pub fn keep_screen(&mut self, name: &str) -> Result<PathBuf> {
        self.screens += 1;
        let path = self.folder.join(format!("{:02}-{name}.png", self.screens));
        let arguments = json!({ "filename": path, "format": "png" });
        self.qmp.run("screendump", &arguments)?;
        Ok(path)
    }

    /// Takes the power away, as a plug that is pulled.
    ///
    /// # Errors
    ///
    /// QEMU is gone already.
    pub fn pull_the_plug(mut self) -> Result<()> {
        self.child.kill().context("ending QEMU")?;
        self.child.wait().context("waiting for QEMU").map(|_| ())
    }

    /// An error with everything that helps to see what went wrong.
    pub fn report(&mut self, what: &str) -> anyhow::Error {
        let serial = self.serial();
        let tail: String = {
            let from = serial.len().saturating_sub(TAIL_BYTES);
            let from = (from..serial.len()).find(|at| serial.is_char_boundary(*at));
            serial[from.unwrap_or(0)..].escape_debug().collect()
        };
        let tail = tail.replace("\\r\\n", "\n    ").replace("\\n", "\n    ");
        let mut text = format!("{what}\n  the end of the serial line:\n    {tail}\n");
        let said = std::fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
        if !said.trim().is_empty() {
            let _ = writeln!(text, "  QEMU says: {}", said.trim());
        }
        if let Ok(screen) = self.keep_screen("failure") {
            let _ = writeln!(text, "  the screen: {}", screen.display());
        }
        anyhow::anyhow!(text)
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .context("looking after QEMU")?
            .is_some())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(child: &mut Child, folder: &Path) -> Result<Qmp> {
    let connected = Deadline::after(QMP_WAIT).until(|| {
        if let Some(status) = child.try_wait().context("looking after QEMU")? {
            let said = std::fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
            bail!("QEMU ended at once with {status}: {}", said.trim());
        }
        Ok(Qmp::connect(&folder.join("qmp")).ok())
    })?;
    if connected.is_none() {
        let _ = child.kill();
    }
    connected.context("QEMU does not open its control socket")
}

/// The firmware's code, and its variables.
fn firmware(wanted: Firmware) -> Result<[&'static str; 2]> {
    let files = FIRMWARE
        .iter()
        .find(|files| Path::new(files.code).is_file());
    let files = files.context(
        "there is no UEFI firmware for QEMU: `apt-get install ovmf` brings it \
         (`cargo xtask vm` installs what is missing by itself)",
    )?;
    Ok(match wanted {
        Firmware::Open => [files.code, files.variables],
        Firmware::VendorKeys => [files.secure_code, files.vendor_variables],
        Firmware::TestKeys => {
            let variables = files.test_variables;
            let variables =
                variables.context("this distribution's firmware has no key for tests")?;
            [files.secure_code, variables]
        }
    })
}

/// `kvm` if it is there and can run firmware, else `tcg`. Tried once: `/dev/kvm` may be there and not work.
#[must_use]
pub fn acceleration() -> &'static str {
    static FOUND: OnceLock<&'static str> = OnceLock::new();
    FOUND.get_or_init(|| {
        let works = Path::new("/dev/kvm").exists() && kvm_runs_firmware().unwrap_or(false);
        if works { "kvm" } else { "tcg" }
    })
}

/// Runs the firmware on KVM for a moment. One that cannot is stopped with an internal error right away.
fn kvm_runs_firmware() -> Result<bool> {
    let folder = std::env::temp_dir().join(format!("truthdb-kvm-{}", std::process::id()));
    std::fs::create_dir_all(&folder).context("making a folder")?;
    let [code, _] = firmware(Firmware::Open)?;
    let socket = folder.join("qmp");
    let mut child = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-machine",
            "q35,accel=kvm",
            "-cpu",
            "host",
        ])
        .arg("-drive")
        .arg(format!(
            "if=pflash,format=raw,unit=0,readonly=on,file={code}"
        ))
        .arg("-serial")
        .arg(format!("file:{}", folder.join("serial.log").display()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting QEMU")?;
    let serial = folder.join("serial.log");
    // Firmware that runs clears its serial terminal; firmware that cannot is stopped by KVM.
    let outcome = Deadline::after(Duration::from_secs(15)).until(|| {
        if child.try_wait().context("looking after QEMU")?.is_some() {
            return Ok(Some(false));
        }
        if std::fs::metadata(&serial).is_ok_and(|about| about.len() > 0) {
            return Ok(Some(true));
        }
        let Ok(mut qmp) = Qmp::connect(&socket) else {
            return Ok(None);
        };
        let status = qmp.run("query-status", &json!({}))?;
        Ok((status["status"] == "internal-error").then_some(false))
    });
    let _ = child.kill();
    let _ = child.wait();
    let _ = std::fs::remove_dir_all(&folder);
    Ok(outcome?.unwrap_or(false))
}

/// The first port that machines are given.
const PORTS_FROM: u16 = 20_000;
/// How many there are.
const PORTS: u16 = 10_000;

/// Two ports, below those that the system gives to connections: until QEMU listens to them, none of the other tests'
/// connections takes them.
fn free_ports() -> Result<[u16; 2]> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % u32::from(PORTS)).unwrap_or_default();
    let mut free = (0..PORTS)
        .map(|_| PORTS_FROM + (first + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let ports = (free.next(), free.next());
    let (Some(one), Some(two)) = ports else {
        bail!("no two of the ports from {PORTS_FROM} on are free");
    };
    Ok([one, two])
}
