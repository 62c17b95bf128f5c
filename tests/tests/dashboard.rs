//! The dashboard in a real browser, served by a real daemon under load.
//!
//! Its cards agree with `/metrics`, names of files stay text, it fits a phone, people who hear it
//! or use a keyboard can use it, and the hit ratios are those that the kernel's own counts give.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use interceptor::ebpf::{DeviceNumber, Observer, ObserverSettings, capability};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{Browser, Cluster, Load, Mount, Pattern, StatusPage, Viewport, eventually, host, load, reading};

const MIB: usize = 1 << 20;
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A name that is markup where it is not shown as text.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\">";

const DESK: Viewport = Viewport { width: 1280, height: 900, is_dark: false };
const TABLET: Viewport = Viewport { width: 768, height: 1024, is_dark: false };
const PHONE: Viewport = Viewport { width: 375, height: 800, is_dark: false };

/// The panels, each with an expression that is true when it shows data.
const PANELS: [(&str, &str); 16] = [
    ("glance", "document.querySelectorAll('#numbers dd b').length === 4"),
    ("sources", "drawn('sources') && rows('sources') >= 3 && rows('sources') + terms('sources-note') === 9"),
    ("ratios", "drawn('ratios') && rows('ratios') === 4"),
    ("throughput", "drawn('throughput') && rows('throughput') >= 1"),
    ("latency", "drawn('latency') && rows('latency') >= 2"),
    ("cache", "drawn('cache') && rows('cache') >= 5 && document.querySelector('#cache-bars .bar')"),
    ("prefetch", "drawn('prefetch') && rows('prefetch') >= 1"),
    ("hot", "document.querySelectorAll('#hot-table .strip span').length >= 3"),
    ("readers", "rows('readers') >= 1"),
    ("curve", "document.getElementById('curve-note').textContent.startsWith('With ')"),
    ("health", "rows('health') >= 2"),
    ("saved", "rows('saved') === 3"),
    ("incidents", "rows('incidents') >= 1"),
    ("mount", "rows('mount') >= 6"),
    ("lost", "rows('lost') >= 1"),
    ("options", "rows('options') >= 10"),
];

/// Helpers of the expressions above. Pixels are read from a copy of the canvas: the browser warns
/// of repeated reads of a canvas itself.
const HELPERS: &str = "\
    window.rows = (panel) => document.querySelectorAll(`#${panel}-table tbody tr`).length; \
    window.terms = (id) => document.querySelectorAll(`#${id} .term`).length; \
    for (const fold of document.querySelectorAll('details')) fold.open = true; \
    window.drawn = (panel) => { \
        const chart = document.getElementById(`${panel}-chart`), canvas = chart.querySelector('canvas'); \
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true }); \
        copy.drawImage(canvas, 0, 0); \
        const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data; \
        return Number(chart.dataset.points) >= 5 && pixels.some((value) => value !== 0); \
    }; true";

/// Every figure that is marked to be compared, by its key.
const FIGURES: &str = "Object.fromEntries([...document.querySelectorAll('[data-key]')].map((td) => [td.dataset.key, td.dataset.value]))";

/// The metric that a figure of the page is another sight of, with its labels.
fn metric(key: &str) -> (&'static str, Vec<String>) {
    let parts: Vec<&str> = key.split('.').collect();
    let label = |name: &str, value: &str| format!("{name}=\"{value}\"");
    match *parts.as_slice() {
        ["bytes", source] => ("interceptor_read_bytes_total", vec![label("source", source)]),
        ["found", source] => ("interceptor_cache_found_bytes_total", vec![label("source", source)]),
        ["reads", source] => ("interceptor_reads_total", vec![label("source", source)]),
        ["ratio", layer, window] => {
            ("interceptor_hit_ratio", vec![label("layer", layer), label("window", window)])
        }
        ["wait", percent, window] => {
            ("interceptor_read_wait_seconds", vec![label("percentile", percent), label("window", window)])
        }
        ["bytes_saved"] => ("interceptor_origin_saved_bytes", vec![]),
        ["way", "reads", way] => ("interceptor_kernel_reads_total", vec![label("way", way)]),
        ["way", "bytes", way] => ("interceptor_kernel_read_bytes_total", vec![label("way", way)]),
        ["latency", "count", "kernel"] => {
            ("interceptor_kernel_request_seconds_count", vec![label("request", "read")])
        }
        ["latency", "count", source] => ("interceptor_read_seconds_count", vec![label("source", source)]),
        ["cache", state] => ("interceptor_cache_bytes", vec![label("state", state)]),
        ["class", slot] => {
            ("interceptor_cache_class_bytes", vec![label("slot", slot), label("state", "used")])
        }
        ["prefetch", "fetched", trigger] => {
            ("interceptor_prefetch_fetched_bytes_total", vec![label("trigger", trigger)])
        }
        ["prefetch", outcome, trigger] => {
            ("interceptor_prefetch_bytes_total", vec![label("trigger", trigger), label("outcome", outcome)])
        }
        ["saved"] => ("interceptor_time_saved_seconds", vec![]),
        ["error", source, reason] => {
            ("interceptor_fetch_errors_total", vec![label("source", source), label("reason", reason)])
        }
        ["fallback", from, to] => ("interceptor_fallbacks_total", vec![label("from", from), label("to", to)]),
        ["integrity", source] => ("interceptor_integrity_failures_total", vec![label("source", source)]),
        _ => panic!("no metric is known for {key}"),
    }
}

/// The figures of the page that differ from `/metrics`.
fn differences(page: &StatusPage, figures: &BTreeMap<String, f64>) -> Vec<String> {
    let compare = |(key, shown): (&String, &f64)| {
        let (name, labels) = metric(key);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let counted = page.metric(name, &labels).unwrap();
        let close = match key.split('.').next() {
            Some("ratio") => (counted - shown).abs() < 0.01,
            Some("saved") => (counted - shown).abs() <= 0.01 * counted.abs(),
            _ => counted == *shown,
        };
        (!close).then(|| format!("{key}: {shown} is shown, {name} is {counted}"))
    };
    figures.iter().filter_map(compare).collect()
}

/// What the page shows as figures that are known.
fn figures(browser: &mut Browser) -> BTreeMap<String, f64> {
    let shown = browser.value(FIGURES).unwrap();
    let shown = shown.as_object().unwrap().iter();
    let number = |(key, text): (&String, &Value)| Some((key.clone(), text.as_str()?.parse::<f64>().ok()?));
    shown.filter_map(number).filter(|(_, value)| value.is_finite()).collect()
}

/// Whether nothing is wider than the window.
const FITS: &str = "document.documentElement.scrollWidth <= window.innerWidth";

/// Whether each of the four numbers is on one line and within its place.
const NUMBERS_FIT: &str = "[...document.querySelectorAll('#numbers dd b')].every((number) => \
    number.scrollWidth <= number.clientWidth && number.getClientRects().length === 1)";

#[test]
#[cfg_attr(not(all(can_mount, has_browser)), ignore = "needs mounts and Chromium")]
fn every_panel_shows_what_the_metrics_say() {
    if !host::can_mount() || !host::has_browser() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let filer = cluster.filer();
    filer.put("/large.bin", &Pattern::new(1).bytes(0, 256 * MIB), "").unwrap();
    filer.put("/warm.bin", &Pattern::new(2).bytes(0, 24 * MIB), "").unwrap();
    filer.put(&format!("/{HOSTILE}"), &Pattern::new(3).bytes(0, 3 * MIB), "").unwrap();
    let mut mount = Mount::builder(&cluster).args(["--cache-size", "128MiB"]).start().unwrap();
    let page = mount.status_page().unwrap();
    let file = |name: &str| mount.path().join(name);
    let (large, warm, hostile) = (file("large.bin"), file("warm.bin"), file(HOSTILE));
    let load = Load::start(&[
        (load::SOMEWHERE, large.as_path()),
        (load::SEQUENTIAL, &warm),
        (load::DIRECT, &hostile),
        (load::SEQUENTIAL, &hostile),
    ])
    .unwrap();

    let mut browser = Browser::start().unwrap();
    browser.look(DESK).unwrap();
    browser.open(mount.status_url().unwrap()).unwrap();
    browser.wait_until("document.body?.dataset.shown !== undefined", WAIT_TIMEOUT).unwrap();
    browser.value(HELPERS).unwrap();
    let seen = mount.metric("interceptor_kernel_reads_total", &[]).unwrap() > 0.0;
    for (panel, shows) in PANELS {
        if !seen && ["throughput", "hot", "readers", "curve"].contains(&panel) {
            host::skipped(&format!("the panel {panel}: eBPF sees nothing here"));
            continue;
        }
        browser.wait_until(&format!("Boolean({shows})"), WAIT_TIMEOUT).unwrap();
    }
    if seen {
        let named = |text: &str, table: &str| {
            let text = serde_json::to_string(text).unwrap();
            format!("document.getElementById('{table}-table').textContent.includes({text})")
        };
        for command in ["cat", "dd"] {
            browser.wait_until(&named(command, "readers"), WAIT_TIMEOUT).unwrap();
        }
        // As text, and therefore not as an element.
        browser.wait_until(&named(HOSTILE, "hot"), WAIT_TIMEOUT).unwrap();
    }
    assert_eq!(browser.value("document.images.length").unwrap(), 0);
    assert_ne!(browser.value("document.title").unwrap(), "owned");
    assert_eq!(
        browser.value("document.getElementById('open').hidden").unwrap(),
        true,
        "loopback is not open"
    );
    let server = cluster.volume_servers()[0].address();
    let health = browser.value("document.getElementById('health-table').textContent").unwrap();
    assert!(health.as_str().unwrap().contains(&server.to_string()), "{server} is not in: {health}");

    // With the load gone, page and metrics come to rest at the same figures.
    drop(load);
    let mut shown = BTreeMap::new();
    let agreed = eventually("agreement of page and metrics", WAIT_TIMEOUT, || {
        shown = figures(&mut browser);
        differences(&page, &shown).is_empty().then_some(())
    });
    agreed.unwrap_or_else(|error| panic!("{error}: {:#?}", differences(&page, &shown)));
    for family in [
        "bytes.",
        "reads.",
        "ratio.",
        "found.",
        "wait.",
        "latency.",
        "cache.",
        "class.",
        "prefetch.",
        "saved",
        "bytes_saved",
    ] {
        assert!(shown.keys().any(|key| key.starts_with(family)), "no {family} among {shown:#?}");
    }
    assert!(shown["bytes.http"] > 0.0 && shown["cache.used"] > 0.0, "{shown:#?}");

    // Other spans, colours and widths.
    browser.value("document.querySelector('[data-span=\"1h\"]').click()").unwrap();
    browser.wait_until("document.body.dataset.span === '1h'", WAIT_TIMEOUT).unwrap();
    browser.value("document.querySelector('[data-span=\"5m\"]').click()").unwrap();
    browser.wait_until("document.body.dataset.span === '5m'", WAIT_TIMEOUT).unwrap();
    let shots = tempfile::tempdir().unwrap();
    let mut pictures = Vec::new();
    let dark = Viewport { is_dark: true, ..DESK };
    for (name, viewport) in [("light", DESK), ("dark", dark), ("phone", PHONE), ("tablet", TABLET)] {
        browser.look(viewport).unwrap();
        browser.wait_until(&format!("window.innerWidth === {}", viewport.width), WAIT_TIMEOUT).unwrap();
        browser.wait_until(FITS, WAIT_TIMEOUT).unwrap();
        browser.wait_until(NUMBERS_FIT, WAIT_TIMEOUT).unwrap();
        match browser.accessibility_faults().unwrap() {
            Some(faults) => assert_eq!(faults, &[] as &[String], "{name}"),
            None => host::skipped("the check by axe-core: `cargo xtask test` has not brought it"),
        }
        let path = shots.path().join(name);
        browser.screenshot(&path).unwrap();
        pictures.push((browser.value("getComputedStyle(document.body).backgroundColor").unwrap(), path));
    }
    let [(light, _), (dark, _), (phone, _), _] = pictures.as_slice() else { unreachable!() };
    assert_ne!(light, dark);
    assert_eq!(light, phone);
    assert!(pictures.iter().all(|(_, path)| fs::metadata(path).unwrap().len() > 20_000));
    assert_eq!(browser.problems().unwrap(), &[] as &[String]);
    assert!(mount.is_running());
}

/// The words of the page are explained on demand, by the keyboard as well, and what is redrawn each
/// second does not take the focus away.
#[test]
#[cfg_attr(not(all(can_mount, has_browser)), ignore = "needs mounts and Chromium")]
fn terms_are_explained_and_keep_the_focus() {
    if !host::can_mount() || !host::has_browser() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/a", &Pattern::new(1).bytes(0, MIB), "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let load = Load::start(&[(load::SEQUENTIAL, &mount.path().join("a"))]).unwrap();
    let mut browser = Browser::start().unwrap();
    browser.look(DESK).unwrap();
    browser.open(mount.status_url().unwrap()).unwrap();
    // Whichever source there is: what is fetched before it is read came from the cache.
    let has_term = "Boolean(document.querySelector('#sources-table [popovertarget]'))";
    browser.wait_until(has_term, WAIT_TIMEOUT).unwrap();
    browser.value("document.querySelector('#sources-table [popovertarget]').focus()").unwrap();
    let focused = "document.activeElement.getAttribute('popovertarget')";
    let term = browser.value(focused).unwrap();
    let shown = browser.value("document.body.dataset.shown").unwrap();
    let later = format!("document.body.dataset.shown - {shown} > 2", shown = shown.as_str().unwrap());
    browser.wait_until(&later, WAIT_TIMEOUT).unwrap();
    assert_eq!(browser.value(focused).unwrap(), term, "two seconds later");
    browser.value("document.activeElement.click()").unwrap();
    let term = term.as_str().unwrap();
    let open = format!(
        "document.querySelector('#{term}:popover-open')?.textContent.includes('interceptor_read_bytes_total') === true"
    );
    browser.wait_until(&open, WAIT_TIMEOUT).unwrap();
    // Every word that is a button has its explanation.
    let dangling = "[...document.querySelectorAll('.term')].filter((term) => !document.getElementById(term.getAttribute('popovertarget'))).length";
    assert_eq!(browser.value(dangling).unwrap(), 0);
    drop(load);
    assert_eq!(browser.problems().unwrap(), &[] as &[String]);
}

fn status_of(mount: &Mount) -> Value {
    serde_json::from_str(&mount.status("/api/v1/status").unwrap().1).unwrap()
}

/// Two mounts of the host are on one page; a daemon that has ended is called that.
#[test]
#[cfg_attr(not(all(can_mount, has_browser)), ignore = "needs mounts and Chromium")]
fn the_mounts_of_the_host_are_on_one_page() {
    if !host::can_mount() || !host::has_browser() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/a", &Pattern::new(1).bytes(0, MIB), "").unwrap();
    let [mount, other] = [(); 2].map(|()| Mount::builder(&cluster).start().unwrap());
    let mut browser = Browser::start().unwrap();
    browser.look(DESK).unwrap();
    browser.open(mount.status_url().unwrap()).unwrap();
    let quoted = |mount: &Mount| serde_json::to_string(mount.path().to_str().unwrap()).unwrap();
    let link = format!(
        "Boolean([...document.querySelectorAll('#mounts a')].find((link) => link.textContent.includes({}) && link.textContent.includes(' OK') && link.href.startsWith({:?})))",
        quoted(&other),
        other.status_url().unwrap()
    );
    browser.wait_until(&link, WAIT_TIMEOUT).unwrap();
    let here =
        format!("document.querySelector('#mounts [aria-current]').textContent.includes({})", quoted(&mount));
    assert_eq!(browser.value(&here).unwrap(), true);
    // One that hangs is not taken for one that is well.
    let pid = status_of(&mount)["pid"].as_i64().unwrap();
    let signal = |signal| kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    signal(Signal::SIGSTOP);
    let gone = "document.body.classList.contains('is-gone') && document.getElementById('severity').textContent === 'Bad'";
    browser.wait_until(gone, WAIT_TIMEOUT).unwrap();
    signal(Signal::SIGCONT);
    browser.wait_until(&format!("!({gone})"), WAIT_TIMEOUT).unwrap();
    drop(other);
    drop(mount);
    browser.wait_until(gone, WAIT_TIMEOUT).unwrap();
}

/// A fixed sequence of reads: misses, and hits of the page cache, of resident files and of the
/// daemon's cache, in known numbers.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_hit_ratios_are_those_of_the_kernels_counts() {
    if !host::can_mount() {
        return;
    }
    let observer = match Observer::start(&ObserverSettings::default()) {
        Ok((observer, _))
            if observer.sees(capability::CACHED_READS) && observer.sees(capability::REQUESTS) =>
        {
            observer
        }
        Ok(_) => return host::skipped("eBPF does not see reads through the page cache here"),
        Err(error) => return host::skipped(&error.to_string()),
    };
    let cluster = Cluster::builder().start().unwrap();
    let sizes = [("a", 16 * MIB), ("b", 4 * MIB), ("c", 40 * MIB)];
    for (name, size) in sizes {
        cluster.filer().put(&format!("/{name}"), &Pattern::new(size as u64).bytes(0, size), "").unwrap();
    }
    let mount = Mount::builder(&cluster).arg("--no-passthrough").start().unwrap();
    let device = DeviceNumber::of(mount.path()).unwrap();
    observer.watch(device).unwrap();
    let before = mount.metric("interceptor_reads_total", &[]).unwrap();
    assert_eq!(before, 0.0, "somebody has read already");

    for (name, size) in sizes {
        let path = mount.path().join(name);
        // Once for the cluster, twice for the page cache, once for the daemon's.
        for _ in 0..3 {
            read(&path, size);
        }
        reading::forget(&path).unwrap();
        read(&path, size);
    }

    let status = || -> Value {
        let (code, text) = mount.status("/api/v1/status").unwrap();
        assert_eq!(code, 200);
        serde_json::from_str(&text).unwrap()
    };
    let mut report = status();
    let counted = eventually("counters at rest", WAIT_TIMEOUT, || {
        let now = status();
        let rest = now["kernel"]["reads"] == report["kernel"]["reads"] && now["reads"] == report["reads"];
        report = now;
        rest.then(|| observer.traffic(device).unwrap())
    })
    .unwrap();
    let (cached, filled) = (counted.cached_bytes as f64, counted.fill_bytes as f64);
    let cache = report["reads"]["cache"]["bytes"].as_f64().unwrap();
    let expected = [
        ("page_cache", 1.0 - filled / cached),
        ("cache", cache / filled),
        ("overall", (cached - filled + cache) / cached),
    ];
    for (layer, expected) in expected {
        let shown = report["hit_ratios"]["10m"][layer].as_f64().unwrap();
        assert!((shown - expected).abs() < 0.01, "{layer}: {shown} is shown, the kernel counted {expected}");
        let exported = mount
            .metric("interceptor_hit_ratio", &[&format!("layer=\"{layer}\""), "window=\"10m\""])
            .unwrap();
        assert!((exported - expected).abs() < 0.01, "{layer}: {exported} is exported, not {expected}");
    }
    // Of four readings of everything, two came from the page cache.
    assert!((expected[0].1 - 0.5).abs() < 0.02, "{expected:?}");
}

fn read(path: &Path, size: usize) {
    let file = File::open(path).unwrap();
    let mut buffer = vec![0; MIB];
    for offset in (0..size).step_by(MIB) {
        file.read_exact_at(&mut buffer, offset as u64).unwrap();
    }
}

/// The document is what its types say, and nothing more: written again by them, it is the same.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_status_is_what_its_schema_says() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/a", &Pattern::new(1).bytes(0, MIB), "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    fs::read(mount.path().join("a")).unwrap();
    let (_, text) = mount.status("/api/v1/status").unwrap();
    let sent: Value = serde_json::from_str(&text).unwrap();
    let understood: interceptor::telemetry::report::StatusReport = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(understood).unwrap(), sent);
    let (_, schema) = mount.status("/api/v1/schema").unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let described = schema["properties"].as_object().unwrap();
    for field in sent.as_object().unwrap().keys() {
        assert!(described.contains_key(field), "the schema does not know {field}");
    }
}

/// Without the token, only `/healthz` answers.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_token_keeps_others_out() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let token: PathBuf = directory.path().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    let guarded = Mount::builder(&cluster).arg("--status-token-file").arg(&token).start().unwrap();
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/live", "/dashboard.js"] {
        assert_eq!(guarded.status(path).unwrap().0, 401, "{path}");
    }
    assert_eq!(guarded.status("/healthz").unwrap().0, 200);
    let status = |more: &[&str]| {
        let address = guarded.status_url().unwrap().trim_start_matches("http://").to_owned();
        let mut command = std::process::Command::new(tests::mount::interceptor_program().unwrap());
        command.args(["status", "--json", "--status-addr", &address]).args(more).output().unwrap()
    };
    let refused = status(&[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--status-token-file"), "{refused:?}");
    let shown = status(&["--status-token-file", token.to_str().unwrap()]);
    assert!(shown.status.success(), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("\"access\":\"token\""), "{shown:?}");
}
