//! What eBPF reports of an attached path: reads that the kernel answers alone, of the layer and of
//! nothing else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tests::{Bindfs, Layer, Pattern, eventually, host};

const SIZE: usize = 8 << 20;
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Descriptors of eBPF programs that the daemon of a layer has open.
fn programs_of(layer: &Layer) -> usize {
    let daemon = layer.daemon().unwrap();
    let open = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().flatten();
    open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:bpf-prog")).count()
}

fn status(layer: &Layer) -> serde_json::Value {
    serde_json::from_str(&layer.status_page().get("/api/v1/status").unwrap().1).unwrap()
}

/// Whether the layer watches itself. If this host does not let it, the running test is skipped.
fn is_watched(layer: &Layer) -> bool {
    let status = status(layer);
    let lost = status["lost"].as_array().unwrap();
    let why = lost.iter().find(|lost| lost["ability"] == "eBPF programs");
    if let Some(why) = why {
        host::skipped(&why.to_string());
    }
    why.is_none()
}

/// Reads a file again and again until eBPF has told the layer's daemon that it is hot, and of
/// reads from the page cache.
fn await_heat(layer: &Layer, file: &File, content: &[u8]) {
    let mut found = vec![0; content.len()];
    let hot = || {
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == content);
        let metric = |name, label| layer.status_page().metric(name, &[label]).ok();
        let is_hot = metric("interceptor_ebpf_events_total", "hot")? > 0.0;
        (is_hot && metric("interceptor_read_bytes_total", "page_cache")? > 0.0).then_some(())
    };
    eventually("heat, and reads from the kernel's pages", WAIT_TIMEOUT, hot).unwrap();
}

/// Opens the file until reads are of what is kept, and gives that handle.
fn open_kept(layer: &Layer, path: &std::path::Path) -> File {
    let kept = || {
        let cache_reads = || layer.status_page().metric("interceptor_reads_total", &["cache"]).unwrap();
        let (before, file) = (cache_reads(), File::open(path).unwrap());
        tests::reading::forget(path).unwrap();
        file.read_at(&mut [0; 4096], 0).unwrap();
        (cache_reads() > before).then_some(file)
    };
    eventually("reads of what is kept", WAIT_TIMEOUT, kept).unwrap()
}

#[test]
#[cfg_attr(not(all(can_mount, has_bindfs)), ignore = "needs mounts and bindfs")]
fn reads_that_the_kernel_answers_are_seen_also_after_another_has_taken_over() {
    if !host::can_mount() || !host::has_bindfs() {
        return;
    }
    let below = Bindfs::start().unwrap();
    let content = Pattern::new(1).bytes(0, SIZE);
    let path = below.put("file", &content).unwrap();
    let mut layer = Layer::over(&below.path(), [""; 0]).unwrap();
    if !is_watched(&layer) {
        return;
    }
    for restarted in [false, true] {
        if restarted {
            drop(layer.restart([""; 0]).unwrap());
        }
        assert!(programs_of(&layer) > 0);
        let file = open_kept(&layer, &path);
        await_heat(&layer, &file, &content);
        let metric = |name: &str, label: &str| layer.status_page().metric(name, &[label]).unwrap();
        assert!(metric("interceptor_kernel_request_seconds_count", "read") > 0.0);
        assert_eq!(metric("interceptor_ebpf_lost_total", ""), 0.0);
        let status = status(&layer);
        let hottest = &status["activity"]["hottest"][0];
        assert_eq!((&hottest["path"], &hottest["size"]), (&"/file".into(), &SIZE.into()), "{status}");
        assert!(!status["activity"]["readers"].as_array().unwrap().is_empty(), "{status}");
        assert!(status["miss_ratio_curve"]["sampled_reads"].as_u64().unwrap() > 0, "{status}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_the_mount_below_serves_is_seen_as_well() {
    let Some(disk) = host::disk() else { return };
    let content = Pattern::new(2).bytes(0, SIZE);
    fs::create_dir(disk.path().join("directory")).unwrap();
    let path = disk.path().join("directory/file");
    fs::write(&path, &content).unwrap();
    let layer = Layer::over(&disk.path(), [""; 0]).unwrap();
    if !is_watched(&layer) {
        return;
    }
    let file = File::open(&path).unwrap();
    let mut found = vec![0; SIZE];
    let seen = || {
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == content);
        let bytes = layer.status_page().metric("interceptor_read_bytes_total", &["page_cache"]).unwrap();
        (bytes >= SIZE as f64).then_some(())
    };
    eventually("reads from the page cache", WAIT_TIMEOUT, seen).unwrap();
    let named = || {
        let status = status(&layer);
        (status["activity"]["hottest"][0]["path"] == "/directory/file").then_some(())
    };
    eventually("the name of what was read", WAIT_TIMEOUT, named).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn nothing_is_watched_where_that_is_not_wanted() {
    let Some(disk) = host::disk() else { return };
    fs::write(disk.path().join("file"), "content").unwrap();
    let layer = Layer::over(&disk.path(), ["--no-ebpf"]).unwrap();
    assert_eq!(fs::read(disk.path().join("file")).unwrap(), b"content");
    assert_eq!(programs_of(&layer), 0);
    assert!(!layer.status_page().get("/metrics").unwrap().1.contains("interceptor_ebpf"));
}
