//! `cargo xtask screenshots`: pictures of the dashboard (light, dark and on a phone) and the texts
//! of `interceptor top` and `interceptor status`.
//!
//! They show a mount under a mixed read load, first healthy and with an engine, then after that
//! has been stopped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::{Browser, Load, Mount, Pattern, Terminal, Viewport, load, mount, terminal};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt::{self, POLL_INTERVAL};
use crate::stage::Stage;
use crate::{cargo, setup};

/// Time for which the mount is read before the first pictures are taken: enough to fill a good part
/// of the charts.
const LOAD_DURATION: Duration = Duration::from_secs(70);
/// Time from the fault to its picture.
const FAULT_DURATION: Duration = Duration::from_secs(20);
/// How long the page may take to show the first figures.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// What the mount may cache: less than what is read.
const CACHE_SIZE: &str = "256MiB";
const MIB: usize = 1 << 20;

const DESK: Viewport = Viewport { width: 1280, height: 900, is_dark: false };
/// The pictures of a healthy mount, each with the window that it is taken of.
const HEALTHY: [(&str, Viewport); 3] = [
    ("dashboard-light.png", DESK),
    ("dashboard-dark.png", Viewport { is_dark: true, ..DESK }),
    ("dashboard-phone.png", Viewport { width: 375, height: 800, is_dark: false }),
];
/// Those of one with a fault.
const FAULTY: [(&str, Viewport); 1] = [("dashboard-fault.png", DESK)];

/// The verb.
pub(crate) fn command() -> Result<()> {
    setup::ensure()?;
    setup::ensure_for_tests();
    if std::env::var_os("INTERCEPTOR_BIN").is_none() {
        cargo::build_interceptor()?;
    }
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../doc/screenshots"));
    std::fs::create_dir_all(directory)?;
    let mut stage = Stage::open("screenshots")?;
    let outcome = show(&mut stage, directory);
    stage.close()?;
    outcome
}

fn show(stage: &mut Stage, directory: &Path) -> Result<()> {
    let filer = stage.cluster.filer();
    let files = [("train/images-0001.tar", 256), ("train/images-0002.tar", 48), ("models/tokenizer.bin", 6)];
    for (number, (name, mib)) in (1..).zip(files) {
        filer.put(&format!("/data/{name}"), &Pattern::new(number).bytes(0, mib * MIB), "")?;
    }
    let text = "timestamp,host,metric,value\n".repeat(400_000);
    filer.put_as("/data/logs/today.csv", text.as_bytes(), "", &[("Content-Type", "text/csv")])?;
    // A short path that no other program uses.
    let point = tempfile::Builder::new().prefix("mnt-").rand_bytes(3).tempdir_in("/tmp")?;
    let mount = Mount::interceptor(&stage.cluster.filer_addresses()).filer_path("/data");
    // What passthrough reads is not seen by every kernel, and would be missing in the pictures.
    let mount = mount.engines(&stage.cluster, "tcp").args(["--cache-size", CACHE_SIZE, "--no-passthrough"]);
    let mount = mount.mount_point(point.path()).start()?;
    let file = |name: &str| mount.path().join(name);
    let [large, middle, small] = files.map(|(name, _)| file(name));
    let log = file("logs/today.csv");
    let load = Load::start(&[
        (load::SOMEWHERE, large.as_path()),
        (load::SEQUENTIAL, &middle),
        (load::FORGETFUL, &small),
        (load::DIRECT, &small),
        (load::FORGETFUL, &log),
        ("sha256sum \"$1\" >/dev/null", &middle),
    ])?;
    wait(LOAD_DURATION)?;
    picture(&mount, &HEALTHY, directory)?;
    write_text(&directory.join("top.txt"), &top(&mount)?)?;
    write_text(&directory.join("status.txt"), &status(&mount)?)?;
    // From here on HTTP has to do.
    for engine in stage.cluster.engines() {
        kill(Pid::from_raw(engine.pid().cast_signed()), Signal::SIGTERM).context("ending the engine")?;
    }
    wait(FAULT_DURATION)?;
    picture(&mount, &FAULTY, directory)?;
    write_text(&directory.join("top-fault.txt"), &top(&mount)?)?;
    drop(load);
    Ok(())
}

fn write_text(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content)?;
    println!("{}", path.display());
    Ok(())
}

/// The address of the mount's status API.
fn address(mount: &Mount) -> Result<&str> {
    let url = mount.status_url().context("the mount has no status page")?;
    Ok(url.trim_start_matches("http://").trim_end_matches('/'))
}

/// What `interceptor status` prints.
fn status(mount: &Mount) -> Result<String> {
    let mut command = Command::new(mount::interceptor_program()?);
    let output = command.args(["status", "--status-addr", address(mount)?]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn wait(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        interrupt::check()?;
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn picture(mount: &Mount, pictures: &[(&str, Viewport)], directory: &Path) -> Result<()> {
    let mut browser = Browser::start()?;
    for (name, viewport) in pictures {
        browser.look(*viewport)?;
        browser.open(mount.status_url().context("the mount has no status page")?)?;
        browser.wait_until("document.body?.dataset.shown !== undefined", PAGE_TIMEOUT)?;
        browser.wait_until(
            "Number(document.getElementById('sources-chart').dataset.points) > 9",
            PAGE_TIMEOUT,
        )?;
        let path: PathBuf = directory.join(name);
        browser.screenshot(&path)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// What a terminal of 80 columns and 24 lines shows.
fn top(mount: &Mount) -> Result<String> {
    let terminal = Terminal::open(80, 24)?;
    let program = terminal::quoted(&mount::interceptor_program()?);
    let address = address(mount)?;
    terminal.type_text(&format!("{program} top --status-addr {address}"))?;
    terminal.press("Enter")?;
    // Of at least three sources, and of all together.
    let has_rates = |screen: &str| screen.matches("/s").count() >= 4;
    terminal.wait_until("rates", PAGE_TIMEOUT, has_rates)
}
