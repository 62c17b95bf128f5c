//! CPUs that are kept from sleeping while small requests follow each other, and only then.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use tests::{Bindfs, Cluster, Layer, Mount, Pattern, StatusPage, eventually, host};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE: usize = 4096;
const PAGES: usize = 256;

/// Whether this host lets it be done. If not, the running test is skipped.
fn can_keep_awake(page: &StatusPage) -> bool {
    let status: serde_json::Value = serde_json::from_str(&page.get("/api/v1/status").unwrap().1).unwrap();
    let lost = status["lost"].as_array().unwrap();
    let why = lost.iter().find(|lost| lost["ability"] == "CPUs that stay awake");
    if let Some(why) = why {
        host::skipped(&why.to_string());
    }
    why.is_none()
}

/// Reads page after page, past the kernel's own, so that each is asked of the daemon.
fn read_pages(path: &Path, content: &[u8]) {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut page = vec![0; PAGE];
    for (number, expected) in content.chunks(PAGE).enumerate() {
        file.read_exact_at(&mut page, (number * PAGE) as u64).unwrap();
        assert!(page == expected, "page {number}");
    }
}

fn seconds(page: &StatusPage) -> f64 {
    page.metric("interceptor_awake_seconds_total", &[]).unwrap()
}

/// The strictest latency, in microseconds, that all processes of this host ask of the kernel.
fn longest_sleep() -> i32 {
    let mut longest = [0; 4];
    File::open("/dev/cpu_dma_latency").unwrap().read_exact(&mut longest).unwrap();
    i32::from_ne_bytes(longest)
}

/// CPUs stay awake when `path` is read a page at a time.
fn stay_awake(page: &StatusPage, path: &Path, content: &[u8]) {
    assert_eq!(seconds(page), 0.0, "nobody has read");
    let awake = || {
        read_pages(path, content);
        (longest_sleep() <= 2 && seconds(page) > 0.0).then_some(())
    };
    eventually("CPUs that stay awake", WAIT_TIMEOUT, awake).unwrap();
    // All readers have stopped.
    let ended = || {
        let before = seconds(page);
        std::thread::sleep(Duration::from_millis(100));
        (seconds(page) == before).then_some(())
    };
    eventually("CPUs that may sleep again", WAIT_TIMEOUT, ended).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn cpus_stay_awake_while_a_mount_is_asked_for_one_small_thing_after_another() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(1).bytes(0, PAGES * PAGE);
    cluster.filer().put("/file", &content, "").unwrap();
    let mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    let page = mount.status_page().unwrap();
    if !can_keep_awake(&page) {
        return;
    }
    stay_awake(&page, &mount.file("/file"), &content);

    let without = Mount::interceptor(&cluster.filer_addresses()).arg("--no-keep-awake").start().unwrap();
    read_pages(&without.file("/file"), &content);
    assert_eq!(seconds(&without.status_page().unwrap()), 0.0);
}

#[test]
#[cfg_attr(not(all(can_mount, has_bindfs)), ignore = "needs mounts and bindfs")]
fn cpus_stay_awake_while_an_attached_path_is_asked_for_one_small_thing_after_another() {
    if !host::can_mount() || !host::has_bindfs() {
        return;
    }
    let below = Bindfs::start().unwrap();
    let content = Pattern::new(2).bytes(0, PAGES * PAGE);
    let path = below.put("file", &content).unwrap();
    let layer = Layer::over(&below.path(), [""; 0]).unwrap();
    let page = layer.status_page();
    if can_keep_awake(&page) {
        stay_awake(&page, &path, &content);
        assert_eq!(layer.detach().unwrap().code(), Some(0));
        let without = Layer::over(&below.path(), ["--no-keep-awake"]).unwrap();
        read_pages(&path, &content);
        assert_eq!(seconds(&without.status_page()), 0.0);
    }
}
