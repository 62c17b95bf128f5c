//! `cargo xtask package --try`: what an operator does with the packages on clean hosts.
//!
//! A host is a tree of Debian that `debootstrap` made, a copy for each run, with this host's kernel
//! and network: `apt` installs the deb there, and systemd boots in a container. A unit then runs
//! `trial.sh`, which tries fstab, units and `doctor` on a real cluster of this host, and writes a
//! line for each. The rpm is installed in such a tree by rpm itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ::tests::data::{Pattern, sum};
use ::tests::tools::target_directory;
use anyhow::{Context, Result, ensure};

use super::NAME;
use crate::stage::Stage;
use crate::{interrupt, process, setup};

/// The releases of Debian that are tried.
const RELEASES: [&str; 2] = ["bookworm", "trixie"];

/// What a tree has beside the base system: an init, and what lets it be asked.
const INCLUDED: &str = "--include=systemd,systemd-sysv,dbus,libpam-systemd,udev";

/// A host that does not boot, or hangs, is given up after this many seconds.
const BOOT_SECONDS: &str = "300";

const SCRIPT: &str = include_str!("trial.sh");

/// Runs the script when everything else has started, and powers the container off.
const UNIT: &str = "\
[Unit]
After=multi-user.target remote-fs.target
[Service]
Type=oneshot
ExecStart=/bin/bash /root/trial.sh
ExecStopPost=/bin/systemctl poweroff --no-block
";

/// A real cluster with two files under `/data`.
struct SampleCluster {
    stage: Stage,
    /// Lines of a shell script that tell where it is, and the files' checksums.
    environment: String,
}

impl SampleCluster {
    fn start() -> Result<Self> {
        let stage = Stage::open("trial")?;
        let (large, small) = (Pattern::new(1).bytes(0, 100 << 20), Pattern::new(2).bytes(0, 300_000));
        let filer = stage.cluster.filer();
        filer.put("/data/large", &large, "maxMB=4")?;
        filer.put("/data/small", &small, "")?;
        let (at, large, small) = (filer.address(), sum(&large), sum(&small));
        let environment = format!("FILER={at}\nSUM_LARGE={large}\nSUM_SMALL={small}\n");
        Ok(Self { stage, environment })
    }
}

/// Tries the deb on each release, and the rpm on the last one.
///
/// # Errors
/// When something does not work; it has been printed.
pub(super) fn run(deb: &Path, rpm: &Path) -> Result<()> {
    setup::ensure_for_trees()?;
    let cluster = SampleCluster::start()?;
    let mut failed = 0;
    for release in RELEASES {
        let tree = copy_of_clean_tree(&cluster.stage, release)?;
        install_deb(&tree, deb)?;
        configure(&tree, &cluster.environment)?;
        boot(&tree, &cluster.stage.cluster.volume_servers()[0].directory())?;
        failed += report(&tree, release)?;
    }
    let tree = copy_of_clean_tree(&cluster.stage, RELEASES[RELEASES.len() - 1])?;
    try_rpm(&tree, rpm)?;
    println!("{:<10} ok rpm: installed, verified, run and removed", "rpm");
    cluster.stage.close()?;
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

/// A tree of the release as it is when it has just been installed. The original is kept.
fn copy_of_clean_tree(stage: &Stage, release: &str) -> Result<PathBuf> {
    let kept = target_directory().join("trees").join(release);
    if !kept.is_dir() {
        let incoming = kept.with_extension("incoming");
        let _ = fs::remove_dir_all(&incoming);
        fs::create_dir_all(&incoming).with_context(|| format!("cannot create {}", incoming.display()))?;
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", INCLUDED, release]).arg(&incoming);
        process::run(debootstrap.stdout(Stdio::null()))?;
        fs::rename(&incoming, &kept)?;
    }
    let copy = stage.directory().join("tree");
    let _ = fs::remove_dir_all(&copy);
    process::run(Command::new("cp").args(["--archive", "--reflink=auto"]).args([&kept, &copy]))?;
    // apt finds the way to the packages as this host does.
    let _ = fs::copy("/etc/resolv.conf", copy.join("etc/resolv.conf"));
    Ok(copy)
}

/// A command in the tree.
fn inside(tree: &Path, program: &str) -> Command {
    let mut command = Command::new("chroot");
    command.arg(tree).arg(program).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_deb(tree: &Path, deb: &Path) -> Result<()> {
    fs::copy(deb, tree.join("root/interceptor.deb"))?;
    process::run(inside(tree, "apt-get").args(["-qq", "update"]))?;
    let mut install = inside(tree, "apt-get");
    process::run(
        install
            .args(["-qq", "-o", "Dir::Log::Terminal=", "install", "--yes", "/root/interceptor.deb"])
            .stdout(Stdio::null()),
    )
}

/// Makes a host of the tree: with a line of fstab, instances of units, and the script.
fn configure(tree: &Path, environment: &str) -> Result<()> {
    let write = |path: &str, text: String| {
        let path = tree.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let filer = environment.lines().next().and_then(|line| line.strip_prefix("FILER="));
    let filer = filer.context("the environment begins with the filer")?;
    for mount_point in ["mnt/fstab", "mnt/unit", "mnt/layer", "volumes"] {
        fs::create_dir(tree.join(mount_point))?;
    }
    let options = "_netdev,nofail,cache-size=256MiB 0 0";
    let mount = format!("{filer}:/data /mnt/fstab interceptor {options}\n");
    // Something else that a layer can be put over.
    write("etc/fstab", mount + "tmpfs /mnt/layer tmpfs defaults 0 0\n")?;
    let unit = format!("filer = \"{filer}\"\nfiler-path = \"/data\"\ncache-size = \"128MiB\"\n");
    write("etc/interceptor/mnt-unit.toml", unit)?;
    // Other programs of this host may have the usual ports.
    let engine = "--volume-dir /volumes --listen 127.0.0.1:0 --status-addr 127.0.0.1:0";
    write("etc/interceptor/rdma-engine.env", format!("RDMA_ENGINE_OPTIONS=\"{engine}\"\n"))?;
    write("root/trial.sh", SCRIPT.to_owned())?;
    write("root/trial.env", environment.to_owned())?;
    write("etc/systemd/system/trial.service", UNIT.to_owned())?;
    let wanted = tree.join("etc/systemd/system/multi-user.target.wants/trial.service");
    symlink("/etc/systemd/system/trial.service", wanted).context("cannot enable the script")
}

/// Boots the tree, and returns when it has powered off. `volumes` are those of the cluster's volume
/// server.
fn boot(tree: &Path, volumes: &Path) -> Result<()> {
    let mut command = Command::new("timeout");
    command.args([
        "--kill-after=30",
        BOOT_SECONDS,
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--register=no",
        "--keep-unit",
    ]);
    // Mounting, and eBPF.
    command.args(["--capability=all", "--system-call-filter=bpf perf_event_open", "--bind=/dev/fuse"]);
    command.arg(format!("--bind-ro={}:/volumes", volumes.display()));
    command.arg("--console=pipe").arg("--directory").arg(tree);
    let console = fs::File::create(tree.join("root/console"))?;
    // How it went is in what the script wrote.
    let mut booted = command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console).spawn()?;
    process::wait(&mut booted)?;
    interrupt::check()
}

/// Prints what the script wrote. Returns how much did not work.
fn report(tree: &Path, release: &str) -> Result<usize> {
    let read = |name: &str| fs::read(tree.join("root").join(name)).unwrap_or_default();
    let lines = read("trial");
    let lines = String::from_utf8_lossy(&lines);
    for line in lines.lines().filter(|line| *line != "end") {
        println!("{release:<10} {line}");
    }
    let failed = lines.lines().filter(|line| line.starts_with("FAILED")).count();
    let has_ended = lines.lines().any(|line| line == "end");
    if failed > 0 || !has_ended {
        for name in ["console", "journal"] {
            eprintln!("{}", String::from_utf8_lossy(&read(name)));
        }
    }
    ensure!(has_ended, "{release} did not get to the end");
    Ok(failed)
}

/// What rpm says of the package, and whether the programs run where it is installed. A tree of
/// Debian has none of the packages that it needs by their names.
fn try_rpm(tree: &Path, package: &Path) -> Result<()> {
    let rpm = || {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(tree).stdout(Stdio::null());
        command
    };
    process::run(Command::new("rpm").arg("--checksig").arg(package).stdout(Stdio::null()))?;
    process::run(rpm().arg("--initdb"))?;
    process::run(rpm().args(["--install", "--nodeps", "--noscripts", "--force-debian"]).arg(package))?;
    process::run(rpm().args(["--verify", "--nodeps", NAME]))?;
    for program in [NAME, "rdma-engine"] {
        process::run(inside(tree, program).arg("--version").stdout(Stdio::null()))?;
    }
    process::run(rpm().args(["--erase", "--noscripts", NAME]))?;
    ensure!(!tree.join("usr/bin").join(NAME).exists(), "rpm left the program behind");
    Ok(())
}
