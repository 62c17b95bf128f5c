//! One guest: a QEMU process that boots, runs one command, and powers itself off.
//!
//! The guest and this process exchange files in a directory that both can write, the *share*: the
//! command goes in as a script, its output and exit status come out. The kernel's messages are in
//! `console` there, for when something goes wrong.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::equipment::Equipment;
use super::initramfs::libraries;
use crate::workplace::Workplace;

/// Everything that QEMU can emulate but SSE 4.2: it emulates the CRC32C instruction bit by bit, so
/// that programs that use it verify checksums at some 80 MB/s.
const CPU: &str = "max,sse4.2=off";

const MEMORY_MIB: u32 = 2048;

/// How long a guest may take to power off.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of the console is shown of a guest that failed: a panic with its registers twice, and
/// the calls that led to it.
const CONSOLE_LINES: usize = 80;

/// Addresses on the fabric, in the order of the guests.
const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// The same as soft-RoCE writes them into its table.
const GIDS: [&str; 2] = ["ffff:0a09:0001", "ffff:0a09:0002"];

/// The script that the first stage of the boot hands over to.
const GUEST_SCRIPT: &str = include_str!("guest.sh");

/// A running guest.
pub(super) struct Guest {
    qemu: Child,
    share: PathBuf,
    /// When the command's exit status was first seen.
    exit_seen: Option<Instant>,
    stdout: OutputTail,
    stderr: OutputTail,
}

/// Which guest of how many.
#[derive(Clone, Copy)]
pub(super) struct GuestSlot {
    pub(super) number: usize,
    pub(super) count: usize,
    pub(super) cpus_in_turn: bool,
}

impl Guest {
    /// Starts the guest; the workplace ends it if we do not.
    pub(super) fn start(
        workplace: &mut Workplace,
        equipment: &Equipment,
        slot: GuestSlot,
        command: &[OsString],
    ) -> Result<Self> {
        let share = workplace.make(&format!("guest-{}", slot.number))?;
        write_share(&share, slot, command)?;
        let mut qemu = qemu(equipment, &share, slot.cpus_in_turn);
        if slot.count == 1 {
            qemu.args(["-nic", "none"]);
        } else {
            // A pair of datagram sockets needs no order of starting, and a network may lose frames
            // anyway.
            let end = |number: usize| workplace.directory().join(format!("link-{number}"));
            let mut link = OsString::from("dgram,id=link,local.type=unix,local.path=");
            link.push(end(slot.number));
            link.push(",remote.type=unix,remote.path=");
            link.push(end(1 - slot.number));
            qemu.arg("-netdev").arg(link).arg("-device").arg(format!(
                "virtio-net-pci,netdev=link,romfile=,host_mtu=4200,mac=02:00:00:00:09:{:02}",
                slot.number + 1
            ));
        }
        let child = qemu.spawn().context("cannot start QEMU")?;
        workplace.owns(child.id())?;
        let (stdout, stderr) = (OutputTail::of(&share, "stdout"), OutputTail::of(&share, "stderr"));
        Ok(Self { qemu: child, share, exit_seen: None, stdout, stderr })
    }

    /// What the command wrote since the last call: its standard output and its standard error.
    pub(super) fn output(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok((self.stdout.more()?, self.stderr.more()?))
    }

    /// Whether the guest has ended. Output may still be waiting. A guest that has run its command
    /// and cannot power off, because a driver waits for something, is ended.
    pub(super) fn ended(&mut self) -> Result<bool> {
        if self.qemu.try_wait()?.is_some() {
            return Ok(true);
        }
        if self.exit_seen.is_none() && self.share.join("status").exists() {
            self.exit_seen = Some(Instant::now());
        }
        if self.exit_seen.is_some_and(|exit_seen| exit_seen.elapsed() > POWER_OFF_TIMEOUT) {
            self.kill()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The exit status of the command, once the guest has ended.
    ///
    /// # Errors
    /// If the guest ended without running the command to its end; the text has the last
    /// lines of the console.
    pub(super) fn status(&self) -> Result<u8> {
        match fs::read_to_string(self.share.join("status")) {
            Ok(status) => status.trim().parse().context("the guest's exit status is no number"),
            Err(_) => bail!("the guest ended before its command did\n{}", self.console()),
        }
    }

    /// The last lines that the guest's kernel wrote.
    pub(super) fn console(&self) -> String {
        let text = fs::read(self.share.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    /// Ends the guest at once.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.qemu.kill().context("cannot end the guest")?;
        self.qemu.wait().context("cannot wait for the guest")?;
        Ok(())
    }
}

fn write_share(share: &Path, slot: GuestSlot, command: &[OsString]) -> Result<()> {
    let number = slot.number.to_string();
    let of = slot.count.to_string();
    let directory = std::env::current_dir()?.into_os_string();
    let mut lines = Vec::new();
    let own = [
        ("VM_GUEST", number.as_str()),
        ("VM_GUESTS", of.as_str()),
        ("VM_ADDRESS", ADDRESSES[slot.number]),
        ("VM_PEER", ADDRESSES[if slot.count == 2 { 1 - slot.number } else { 0 }]),
        ("VM_GID", GIDS[slot.number]),
    ];
    for (name, value) in own {
        lines.extend_from_slice(format!("export {name}=").as_bytes());
        lines.extend(quoted(value.as_bytes()));
        lines.push(b'\n');
    }
    lines.extend_from_slice(b"export VM_DIRECTORY=");
    lines.extend(quoted(directory.as_bytes()));
    lines.push(b'\n');
    fs::write(share.join("environment"), lines)?;

    let mut script = b"exec".to_vec();
    for word in command {
        script.push(b' ');
        script.extend(quoted(word.as_bytes()));
    }
    script.push(b'\n');
    fs::write(share.join("command"), script)?;
    fs::write(share.join("guest.sh"), GUEST_SCRIPT).context("cannot write the share of the guest")
}

/// A word that the shell takes as it is.
fn quoted(word: &[u8]) -> Vec<u8> {
    let mut quoted = b"'".to_vec();
    for &byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            other => quoted.push(other),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// QEMU with all but the network. Emulation only: the kernels do not boot under every KVM, and the
/// runs are short.
///
/// With a thread for each CPU, one may keep the emulator's translation of a breakpoint that another
/// has taken away. A kernel that changes its code while it runs puts one there for a moment, and
/// panics ("int3") if it is met later: with ftrace alone that takes a second while `dd` copies
/// bytes. In one thread CPUs take turns, and that cannot be.
fn qemu(equipment: &Equipment, share: &Path, cpus_in_turn: bool) -> Command {
    let mut command = Command::new(equipment.qemu.join("usr/bin/qemu-system-x86_64"));
    let data = equipment.qemu.join("usr/share");
    command.env("LD_LIBRARY_PATH", libraries(&equipment.qemu));
    command.arg("-L").arg(data.join("qemu")).arg("-L").arg(data.join("seabios"));
    let accelerator = if cpus_in_turn { "tcg,thread=single" } else { "tcg,thread=multi" };
    command.args(["-machine", "q35", "-accel", accelerator, "-cpu", CPU, "-smp", "2"]);
    command.arg("-m").arg(MEMORY_MIB.to_string()).args([
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(&equipment.image).arg("-initrd").arg(&equipment.initramfs);
    // `no_timer_check`: on a busy host the kernel would find its emulated timer broken, and stop.
    // `rcu_expedited`: destroying a queue pair waits for readers on all processors, which takes
    // long on an idle guest.
    let kernel = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check rcupdate.rcu_expedited=1";
    command.args(["-append", kernel]);
    command.arg("-serial").arg(joined("file:", &share.join("console")));
    for (tag, directory, access) in [
        ("host", Path::new("/"), "on"),
        ("tools", &equipment.tools, "on"),
        ("kernel", &equipment.kernel, "on"),
        ("share", share, "off"),
    ] {
        let mut device =
            joined("local,security_model=none,multidevs=remap,path=", &doubled_commas(directory));
        device.push(format!(",mount_tag={tag},readonly={access}"));
        command.arg("-virtfs").arg(device);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut word = OsString::from(prefix);
    word.push(path);
    word
}

/// QEMU's way to write a comma within an option.
fn doubled_commas(path: &Path) -> PathBuf {
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        bytes.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(bytes).into()
}

/// A file that grows.
struct OutputTail {
    path: PathBuf,
    read: u64,
}

impl OutputTail {
    fn of(share: &Path, name: &str) -> Self {
        Self { path: share.join(name), read: 0 }
    }

    fn more(&mut self) -> Result<Vec<u8>> {
        // The guest makes it when the command starts.
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes).context("cannot read the guest's output")? as u64;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for word in ["plain", "it's", "a b\n$HOME `x` \"q\" \\", ""] {
            let script = [b"printf %s ".to_vec(), quoted(word.as_bytes())].concat();
            let output = Command::new("sh").arg("-c").arg(OsString::from_vec(script)).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes());
        }
    }

    #[test]
    fn a_tail_gives_every_byte_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut tail = OutputTail::of(directory.path(), "out");
        assert!(tail.more().unwrap().is_empty());
        fs::write(directory.path().join("out"), "one").unwrap();
        assert_eq!(tail.more().unwrap(), b"one");
        fs::write(directory.path().join("out"), "onetwo").unwrap();
        assert_eq!(tail.more().unwrap(), b"two");
        assert!(tail.more().unwrap().is_empty());
    }
}
