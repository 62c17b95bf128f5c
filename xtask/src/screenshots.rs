//! `cargo xtask screenshots`: pictures of the dashboard (light, dark and on a phone) and the text
//! of `interceptor top`.
//!
//! They show a mount under a mixed read load: first through an engine and, once that is stopped,
//! over HTTP.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ::tests::{Browser, Load, Mount, Pattern, Terminal, Viewport, load, mount, terminal};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt::{self, POLL_INTERVAL};
use crate::stage::Stage;
use crate::{cargo, setup};

/// Time for which the mount is read with an engine, and then without it, before the pictures are
/// taken: enough to fill a good part of the charts.
const LOAD_DURATION: Duration = Duration::from_secs(50);
/// How long the page may take to show the first figures.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// What the mount may cache: less than what is read.
const CACHE_SIZE: &str = "256MiB";
const MIB: usize = 1 << 20;

/// The pictures, each with the window that it is taken of.
const PICTURES: [(&str, Viewport); 3] = [
    ("dashboard-light.png", Viewport { width: 1280, height: 900, is_dark: false }),
    ("dashboard-dark.png", Viewport { width: 1280, height: 900, is_dark: true }),
    ("dashboard-phone.png", Viewport { width: 375, height: 800, is_dark: false }),
];

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
    // From here on HTTP has to do, as the pictures show.
    for engine in stage.cluster.engines() {
        kill(Pid::from_raw(engine.pid().cast_signed()), Signal::SIGTERM).context("ending the engine")?;
    }
    wait(LOAD_DURATION)?;
    picture(&mount, directory)?;
    let path = directory.join("top.txt");
    std::fs::write(&path, top(&mount)?)?;
    println!("{}", path.display());
    drop(load);
    Ok(())
}

fn wait(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        interrupt::check()?;
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn picture(mount: &Mount, directory: &Path) -> Result<()> {
    let mut browser = Browser::start()?;
    for (name, viewport) in PICTURES {
        browser.look(viewport)?;
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
    let address = mount.status_url().context("the mount has no status page")?.trim_start_matches("http://");
    terminal.type_text(&format!("{program} top --status-addr {address}"))?;
    terminal.press("Enter")?;
    let has_rates = |screen: &str| screen.matches("/s").count() >= 7;
    terminal.wait_until("rates", PAGE_TIMEOUT, has_rates)
}
