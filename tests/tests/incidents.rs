//! Incidents, replayed: what an operator sees first names the cause, in the status document, in
//! `interceptor status` and on the dashboard.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::certificates::Authority;
use tests::mount::interceptor_program;
use tests::proxy::FaultProxy;
use tests::{Browser, Cluster, Fault, Mount, Pattern, Viewport, data, eventually, host, reading};

const SIZE: usize = 32 << 10;
const TIMEOUT: Duration = Duration::from_secs(60);
const FILES: usize = 600;
/// These are read while a server is slow, the others while it is silent.
const READ_SLOWLY: usize = 400;
/// Longer than disks take, and shorter than `--slow-read`: only a comparison of the servers tells.
const DELAY: Duration = Duration::from_millis(500);

fn status(mount: &Mount) -> Value {
    serde_json::from_str(&mount.status("/api/v1/status").unwrap().1).unwrap()
}

/// Waits until the sentence of state has `text`, and returns the finding of which it is a part.
fn verdict_with(mount: &Mount, text: &str) -> Value {
    let mut last = Value::Null;
    let found = eventually(text, TIMEOUT, || {
        last = status(mount)["verdict"].clone();
        let is_first = last["text"].as_str()?.contains(text);
        is_first.then(|| last["findings"][0].clone())
    });
    found.unwrap_or_else(|error| panic!("{error}: {last}"))
}

/// What `interceptor status` prints.
fn printed(mount: &Mount) -> String {
    let address = mount.status_url().unwrap().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut command = Command::new(interceptor_program().unwrap());
    let output = command.args(["status", "--status-addr", &address]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the first line of `interceptor status` has `text`: the state may change between two
/// readers.
fn is_printed(mount: &Mount, text: &str) {
    let first_line = || printed(mount).lines().next()?.contains(text).then_some(());
    eventually(text, TIMEOUT, first_line).unwrap_or_else(|error| panic!("{error}: {}", printed(mount)));
}

/// The row that `interceptor status` prints of a volume server.
fn row_of(mount: &Mount, address: &str) -> Option<String> {
    let name = format!("volume server {address}");
    printed(mount).lines().find(|line| line.starts_with(&name)).map(str::to_owned)
}

/// The dashboard in a browser, if this machine has one.
struct Dashboard(Option<Browser>);

impl Dashboard {
    fn open(mount: &Mount) -> Dashboard {
        let mut browser = host::has_browser().then(|| Browser::start().unwrap());
        if let Some(browser) = &mut browser {
            browser.look(Viewport { width: 1280, height: 900, is_dark: false }).unwrap();
            browser.open(mount.status_url().unwrap()).unwrap();
        }
        Dashboard(browser)
    }

    /// Waits until the sentence has the first text while the second is in the list below it.
    fn says(&mut self, sentence: &str, listed: &str) {
        let Some(browser) = &mut self.0 else { return };
        let has = |id: &str, text: &str| {
            format!("document.getElementById('{id}').textContent.includes({})", Value::from(text))
        };
        let both = format!("{} && {}", has("sentence", sentence), has("findings", listed));
        browser.wait_until(&both, TIMEOUT).unwrap_or_else(|error| {
            let shown = browser.value("document.getElementById('glance').textContent").unwrap();
            panic!("{error}; the page says {shown}");
        });
    }

    /// Waits until the element of this id has the text.
    fn shows(&mut self, id: &str, text: &str) {
        let Some(browser) = &mut self.0 else { return };
        let has = format!("document.getElementById('{id}').textContent.includes({})", Value::from(text));
        browser.wait_until(&has, TIMEOUT).unwrap();
    }

    /// Checks the page as it is with axe-core, if `cargo xtask test` has brought that.
    fn is_accessible(&mut self) {
        let Some(browser) = &mut self.0 else { return };
        for is_dark in [false, true] {
            browser.look(Viewport { width: 1280, height: 900, is_dark }).unwrap();
            let faults = browser.accessibility_faults().unwrap();
            assert_eq!(faults.unwrap_or_default(), &[] as &[String], "dark: {is_dark}");
        }
    }
}

/// Ends the readers and the fault when it is dropped, also if the test fails.
struct EndOfReading<'a>(&'a AtomicBool, &'a FaultProxy);

impl Drop for EndOfReading<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        self.1.set(Fault::None);
    }
}

/// Reads files of these numbers, which are not in the cache, one after the other, until `ended`.
fn read_cold(mount: &Mount, ended: &AtomicBool, numbers: impl Iterator<Item = usize>) {
    for number in numbers {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let path = path(number);
        // A server that is silent fails some.
        if let Ok(read) = fs::read(mount.file(&path)) {
            data::assert_same(&path, &read, &content(number));
        }
    }
}

/// Each in a directory of its own, or the next ones would be fetched ahead.
fn path(number: usize) -> String {
    format!("/{number}/file")
}

fn content(number: usize) -> Vec<u8> {
    Pattern::new(number as u64).bytes(0, SIZE)
}

/// One of three volume servers becomes slow, and then silent.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_slow_server_and_then_a_silent_one_is_named() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().volume_servers(3).proxied().start().unwrap();
    cluster.grow_everywhere().unwrap();
    for number in 0..FILES {
        cluster.filer().put(&path(number), &content(number), "").unwrap();
    }
    let args = ["--volume-server-access", "publicUrl", "--read-retry-time=4s"];
    let mount = Mount::interceptor(&cluster.filer_addresses()).args(args).start().unwrap();
    let culprit = &cluster.proxies()[1];
    let address = culprit.address();
    let mut dashboard = Dashboard::open(&mount);
    let is_good = || (status(&mount)["verdict"]["severity"] == "good").then_some(());
    eventually("a healthy mount", TIMEOUT, is_good).unwrap();

    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = EndOfReading(&ended, culprit);
        culprit.set(Fault::Delay(DELAY));
        for part in 0..4 {
            let (mount, ended) = (&mount, &ended);
            scope.spawn(move || read_cold(mount, ended, (part..READ_SLOWLY).step_by(4)));
        }
        let slow = format!("volume server {address} is slow");
        let finding = verdict_with(&mount, &slow);
        assert_eq!(finding["severity"], "degraded");
        assert!(finding["advice"].as_str().unwrap().contains("those of others"), "{finding}");
        dashboard.says(&slow, "");
        dashboard.shows("health-table", "slow");
        is_printed(&mount, &slow);
        eventually("its row", TIMEOUT, || row_of(&mount, &address)?.contains("SLOW").then_some(())).unwrap();
        let line = "a volume server is much slower than the others";
        let is_named = |log: String| log.lines().any(|l| l.contains(line) && l.contains(&address));
        eventually(line, TIMEOUT, || is_named(mount.log().ok()?).then_some(())).unwrap();

        culprit.set(Fault::StallAfter(0));
        // What fails is not kept: those of the silent server are cold again and again.
        scope.spawn(|| read_cold(&mount, &ended, (READ_SLOWLY..FILES).cycle()));
        let silent = format!("volume server {address} keeps readers waiting");
        let finding = verdict_with(&mount, &silent);
        assert_eq!(finding["severity"], "bad");
        dashboard.says(&silent, "The mount is not ready: volume servers");
        is_printed(&mount, &silent);
    });
}

/// An engine takes only clients with certificates, and the mount has none.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_engine_that_refuses_without_tls_is_named() {
    if !host::can_mount() {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let authority = Authority::new("the cluster's authority");
    authority.write(keys.path());
    authority.issue(keys.path(), "member");
    let at = |name: &str| keys.path().join(name).display().to_string();
    let (ca, certificate, key) = (at("ca.crt"), at("member.crt"), at("member.key"));
    let security = keys.path().join("security.toml");
    let settings =
        format!("[grpc]\nca = \"{ca}\"\n[grpc.volume]\ncert = \"{certificate}\"\nkey = \"{key}\"\n");
    fs::write(&security, settings).unwrap();

    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/file", &content(1), "").unwrap();
    let server = &cluster.volume_servers()[0];
    let engine = cluster.start_engine_with(server, &security).unwrap();
    let named = format!("--engine={}={}", server.address(), engine.address());
    let mount = Mount::builder(&cluster).arg(&named).start().unwrap();
    data::assert_same("/file", &fs::read(mount.file("/file")).unwrap(), &content(1));
    let (engine, server) = (engine.address(), server.address());
    let sentence = format!("engine {engine} beside volume server {server} is there and not used");
    let finding = verdict_with(&mount, &sentence);
    assert_eq!(finding["severity"], "degraded");
    let advice = finding["advice"].as_str().unwrap();
    let remedy = "the engine asks for TLS; give this host the certificates of [grpc] and [grpc.client]";
    assert!(advice.contains(remedy), "{finding}");
    let printed = printed(&mount);
    assert!(printed.split_whitespace().collect::<Vec<_>>().join(" ").contains(&sentence), "{printed}");
    assert!(printed.contains(&format!("engine of {server}")), "{printed}");
    let log = mount.log().unwrap();
    assert!(log.contains("an engine is not asked") && log.contains(remedy), "{log}");
}

/// What is read again and again is four times as large as the cache. Each file is read by one call.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_cache_that_is_too_small_is_named() {
    const LARGE: usize = 16 << 20;
    const NUMBERS: std::ops::Range<usize> = 0..8;
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = |number: usize| Pattern::new(number as u64).bytes(0, LARGE);
    for number in NUMBERS {
        cluster.filer().put(&path(number), &content(number), "").unwrap();
    }
    let mount = Mount::builder(&cluster).args(["--cache-size=32MiB", "--no-passthrough"]).start().unwrap();
    if status(&mount)["miss_ratio_curve"].is_null() {
        return host::skipped("no miss-ratio curve without eBPF");
    }
    let text = "the cache is small for what is read";
    let named = eventually(text, TIMEOUT, || {
        for number in NUMBERS {
            let file = mount.file(&path(number));
            data::assert_same(&path(number), &fs::read(&file).unwrap(), &content(number));
            // Or the page cache would make up for the cache.
            reading::forget(&file).unwrap();
        }
        status(&mount)["verdict"]["text"].as_str()?.contains(text).then_some(())
    });
    named.unwrap_or_else(|error| {
        let now = status(&mount);
        panic!("{error}: {} {} {}", now["verdict"], now["miss_ratio_curve"], now["hit_ratios"])
    });
    let finding = verdict_with(&mount, text);
    assert_eq!(finding["severity"], "degraded");
    assert!(finding["advice"].as_str().unwrap().contains("--cache-size"), "{finding}");
}

/// The filer falls silent: its changes are no longer heard.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_filer_that_is_gone_is_named() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/file", &content(1), "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    data::assert_same("/file", &fs::read(mount.file("/file")).unwrap(), &content(1));
    let mut dashboard = Dashboard::open(&mount);
    cluster.filers()[0].kill();
    let finding = verdict_with(&mount, "no filer answers");
    assert_eq!(finding["severity"], "bad");
    let findings = status(&mount)["verdict"]["findings"].to_string();
    assert!(findings.contains("changes of the filer are not heard"), "{findings}");
    assert!(printed(&mount).lines().next().unwrap().contains("no filer answers"), "{}", printed(&mount));
    dashboard.says("no filer answers", "The mount is not ready: filer");
    dashboard.is_accessible();
}
