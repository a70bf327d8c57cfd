//! A test of the disk image as it is published: nobody has configured it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use truthdb_vm_tests::client::Client;
use truthdb_vm_tests::disk::{Ext4, copy_sparse};
use truthdb_vm_tests::terminal;
use truthdb_vm_tests::{Bus, Disk, Machine, Spec};

use crate::Artefacts;
use crate::install::{BOOT, only_the_token_opens, wait_for_append};

/// The configuration that images under test have, and published ones do not.
const CONFIG: &str = "/config/truthdb.toml";
/// From a key to the page behind it.
const PAGE: Duration = Duration::from_secs(30);
/// From the confirmation to the end.
const STOP: Duration = Duration::from_secs(30);

/// The first start makes a certificate and a token, which the console shows until the next one; the console's keys.
pub(crate) fn first_start(artefacts: &Artefacts) -> Result<()> {
    let folder = artefacts.work.join("first-start");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let image = folder.join("disk.raw");
    copy_sparse(&artefacts.disk, &image)?;
    Ext4::find(&image)?.remove(&image, CONFIG)?;
    let spec = Spec {
        disks: vec![Disk::new(&image, "raw", Bus::Virtio)],
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, &folder)?;
    machine.wait_for_serial("Serving.", BOOT)?;
    let client = machine.wait("the console shows a token", BOOT, |machine| {
        Ok(shown(artefacts, machine))
    })?;
    machine.keep_screen("first-start")?;
    wait_for_append(&mut machine, &client, "orders", 0)?;
    only_the_token_opens(&client)?;
    // Messages and back; power only after a word that confirms it, which Enter alone and another word do not.
    look_at_messages(&mut machine)?;
    go(&mut machine, "r", "Start this node again?")?;
    go(&mut machine, "ret", "Serving.")?;
    go(&mut machine, "r", "Start this node again?")?;
    confirm(&mut machine, "reboot", "[Enter] Start again")?;
    let before = machine.serial().len();
    let starts = "BdsDxe: starting";
    machine.wait("the machine starts again", BOOT, |machine| {
        let serial = machine.serial();
        let since = serial.get(before..).unwrap_or_default();
        Ok(since.contains(starts).then_some(()))
    })?;
    machine.wait("the node serves again", BOOT, |machine| {
        let serial = machine.serial();
        let since = serial.rsplit(starts).next().unwrap_or_default();
        Ok(since.contains("Serving.").then_some(()))
    })?;
    let page = terminal::page(&machine.serial());
    ensure!(
        !page.contains(&client.token) && !page.contains("Shown until"),
        "the token is shown again:\n{page}"
    );
    ensure!(
        client.read("orders")?.len() == 1,
        "the event is not there any more"
    );
    look_at_messages(&mut machine)?;
    go(&mut machine, "o", "Turn this node off?")?;
    confirm(&mut machine, "off", "[Enter] Turn off")?;
    machine.wait_for_end(STOP)?;
    std::fs::remove_file(&image).context("removing a disk")
}

/// Presses a key, and waits until the page has a text.
fn go(machine: &mut Machine, key: &str, text: &str) -> Result<()> {
    machine.press(&[key])?;
    wait_for_page(machine, text)
}

/// Goes to the messages and back. The key is pressed again and again, which does nothing on the page of messages: a
/// keyboard that was just found says nothing of keys before.
fn look_at_messages(machine: &mut Machine) -> Result<()> {
    machine.wait("the console shows messages", PAGE, |machine| {
        machine.press(&["m"])?;
        let page = terminal::page(&machine.serial());
        // The summary has the name of that page too, beside its key.
        Ok(page.contains("Scroll").then_some(()))
    })?;
    go(machine, "esc", "Serving.")
}

/// Types the word that a confirmation asks for, and Enter when the page offers it.
fn confirm(machine: &mut Machine, word: &str, offer: &str) -> Result<()> {
    machine.type_keys(word)?;
    wait_for_page(machine, offer)?;
    machine.press(&["ret"])
}

fn wait_for_page(machine: &mut Machine, text: &str) -> Result<()> {
    machine.wait(&format!("the console shows {text:?}"), PAGE, |machine| {
        let page = terminal::page(&machine.serial());
        Ok(page.contains(text).then_some(()))
    })
}

/// A client with what the console shows, once it shows it.
fn shown(artefacts: &Artefacts, machine: &Machine) -> Option<Client> {
    let page = terminal::page(&machine.serial());
    let words: Vec<&str> = page.split_whitespace().collect();
    let token = words.iter().find(|word| word.starts_with("tdb_"))?;
    let fingerprint = words.iter().find(|word| word.matches(':').count() == 31)?;
    Some(Client {
        program: PathBuf::clone(&artefacts.truthdb),
        port: machine.native_port(),
        token: (*token).to_owned(),
        fingerprint: (*fingerprint).to_owned(),
    })
}
