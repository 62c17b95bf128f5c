//! What SeaweedFS stores otherwise than it was written: compressed, encrypted, both.
//!
//! Each test first proves on SeaweedFS that the content is stored the way the test is about.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use serde_json::Value;
use tests::mount::interceptor_program;
use tests::{Cluster, Filer, Layer, Mount, Pattern, S3, Shared, data, host, reading};

static PLAIN: Shared<Cluster> = Shared::new();
static ENCRYPTED: Shared<Cluster> = Shared::new();

fn plain() -> Arc<Cluster> {
    PLAIN.get(|| Cluster::builder().max_mb(1).start().unwrap())
}

fn encrypted() -> Arc<Cluster> {
    ENCRYPTED.get(|| Cluster::builder().max_mb(1).encrypt().start().unwrap())
}

fn all_chunks(filer: &Filer, path: &str, condition: impl Fn(&Value) -> bool) -> bool {
    let chunks = filer.chunks(path).unwrap();
    !chunks.is_empty() && chunks.iter().all(condition)
}

/// Whether the volume server stores this file's first needle as gzip: it says so only when asked
/// for gzip.
fn needle_is_gzipped(cluster: &Cluster, path: &str) -> bool {
    let chunk = &cluster.filer().chunks(path).unwrap()[0];
    let fid = chunk["file_id"].as_str().unwrap();
    let url = format!("http://{}/{fid}", cluster.volume_servers()[0].address());
    let answer = ureq::get(url).header("Accept-Encoding", "gzip").call().unwrap();
    answer.headers().get("content-encoding").is_some_and(|coding| coding == "gzip")
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn text_that_the_filer_compresses() {
    if !host::can_mount() {
        return;
    }
    let cluster = plain();
    let filer = cluster.filer();
    let sizes = [100, 5000, 40_000, 1_000_000, 1 << 20, 5_500_000];
    for size in sizes {
        let path = format!("/text/{size}.txt");
        filer.put_as(&path, &data::text(1, size), "", &[("Content-Type", "text/plain")]).unwrap();
        assert!(size < 1000 || all_chunks(&filer, &path, |chunk| chunk["is_compressed"] == true), "{path}");
    }
    let mount = Mount::builder(&cluster).start().unwrap();
    for size in sizes {
        reading::verify(&mount.file(&format!("/text/{size}.txt")), &data::text(1, size));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn text_of_unknown_type() {
    if !host::can_mount() {
        return;
    }
    let cluster = plain();
    let filer = cluster.filer();
    let content = data::text(2, 3_300_000);
    filer.put("/unknown/log", &content, "").unwrap();
    assert!(needle_is_gzipped(&cluster, "/unknown/log"));
    let mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/unknown/log"), &content);
}

/// Stores a file's only needle anew, like an uploader that leaves compression to the volume
/// server.
fn upload_needle_again(cluster: &Cluster, path: &str, content: &[u8]) {
    let fid = cluster.filer().chunks(path).unwrap()[0]["file_id"].as_str().unwrap().to_owned();
    let url = format!("http://{}/{fid}", cluster.volume_servers()[0].address());
    let body = [
        &b"--border\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n"[..],
        content,
        b"\r\n--border--\r\n",
    ]
    .concat();
    let form = "multipart/form-data; boundary=border";
    ureq::post(url).header("Content-Type", form).send(&body[..]).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn text_that_the_volume_server_compresses_and_the_chunk_record_does_not_tell() {
    if !host::can_mount() {
        return;
    }
    let cluster = plain();
    let filer = cluster.filer();
    let sizes = [3000, 200_000, 1 << 20];
    for size in sizes {
        let path = format!("/untold/{size}");
        let content = data::text(3, size);
        filer.put_as(&path, &content, "", &[("Content-Type", "application/x-log")]).unwrap();
        // The same content again would be taken for unchanged.
        upload_needle_again(&cluster, &path, b"something else");
        upload_needle_again(&cluster, &path, &content);
        assert!(all_chunks(&filer, &path, |chunk| chunk["is_compressed"].is_null()), "{path} is told");
        assert!(needle_is_gzipped(&cluster, &path), "{path} is not compressed");
    }
    let mount = Mount::builder(&cluster).start().unwrap();
    for size in sizes {
        reading::verify(&mount.file(&format!("/untold/{size}")), &data::text(3, size));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn content_that_is_gzip_itself_stays_gzip() {
    if !host::can_mount() {
        return;
    }
    let cluster = plain();
    // A gzip member of stored blocks would do as well: only the magic at the start of plain
    // content matters.
    let mut content = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    content.extend(Pattern::new(4).bytes(0, 700_000));
    cluster.filer().put("/archive.gz", &content, "").unwrap();
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &Pattern::new(5).bytes(0, 300_000)].concat();
    cluster.filer().put("/archive.zst", &zstd, "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/archive.gz"), &content);
    reading::verify(&mount.file("/archive.zst"), &zstd);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn encrypted_chunks() {
    if !host::can_mount() {
        return;
    }
    let cluster = encrypted();
    let filer = cluster.filer();
    let mut files = Vec::new();
    for size in [1, 4096, 100_000, 1 << 20, 3_200_001] {
        files.push((format!("/secret/random-{size}"), Pattern::new(6).bytes(0, size)));
        files.push((format!("/secret/text-{size}.txt"), data::text(7, size)));
    }
    for (path, content) in &files {
        filer.put(path, content, "").unwrap();
        assert!(all_chunks(&filer, path, |chunk| chunk["cipher_key"].is_string()), "{path} is not encrypted");
    }
    assert!(
        all_chunks(&filer, "/secret/text-3200001.txt", |chunk| chunk["is_compressed"] == true),
        "text is compressed before it is encrypted"
    );
    let mount = Mount::builder(&cluster).start().unwrap();
    for (path, content) in &files {
        reading::verify(&mount.file(path), content);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn text_written_through_a_weed_mount() {
    if !host::can_mount() {
        return;
    }
    for cluster in [plain(), encrypted()] {
        let writer = Mount::weed(&cluster).start().unwrap();
        let content = data::text(8, 4_100_000);
        fs::write(writer.file("/by-mount.txt"), &content).unwrap();
        drop(writer);
        let mount = Mount::builder(&cluster).start().unwrap();
        reading::verify(&mount.file("/by-mount.txt"), &content);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_chunk_that_is_too_large_for_the_cache_is_fetched_once_for_its_readers() {
    const SIZE: usize = 90 << 20;
    const READERS: u64 = 4;
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(100).encrypt().start().unwrap();
    let filer = cluster.filer();
    let content = Pattern::new(10).bytes(0, SIZE);
    filer.put("/large", &content, "").unwrap();
    assert_eq!(filer.chunks("/large").unwrap().len(), 1);
    assert!(all_chunks(&filer, "/large", |chunk| chunk["cipher_key"].is_string()));
    let args = ["--cache-size", "256MiB", "--no-ebpf"];
    let mount = Mount::interceptor(&cluster.filer_addresses()).args(args).start().unwrap();
    let path = mount.file("/large");
    let whole = || data::assert_same("the whole", &fs::read(&path).unwrap(), &content);
    // All readers at a time, then one after the other, with the pages dropped.
    thread::scope(|scope| {
        scope.spawn(whole);
        for seed in 1..READERS {
            let (path, content) = (&path, &content);
            scope.spawn(move || reading::random(path, content, seed, 40));
        }
    });
    for _ in 0..2 {
        reading::forget(&path).unwrap();
        whole();
    }
    let fetched = mount.metric("interceptor_fetch_bytes_total", &["source=\"http\""]).unwrap();
    // Once; a second time if all readers were held up for longer than it is held for them.
    let times = fetched / SIZE as f64;
    assert!((1.0..=2.0).contains(&times), "{times} times");
}

/// How a file fails: when it is opened, or when it is read.
fn failure(path: &Path) -> (&'static str, io::Error) {
    match File::open(path) {
        Err(error) => ("open", error),
        Ok(mut file) => ("read", file.read(&mut [0; 16]).expect_err("these bytes can only be ciphertext")),
    }
}

/// Whether this host has passthrough, without which the kernel sends no request when a file is
/// opened.
fn has_passthrough(mount: &Mount) -> bool {
    if std::env::var("MOUNT_OPTIONS").is_ok_and(|options| options.contains("--no-passthrough")) {
        return false;
    }
    let (_, status) = mount.status("/api/v1/status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    !status["lost"].as_array().unwrap().iter().any(|lost| lost["ability"] == "FUSE passthrough")
}

/// What `interceptor warmup` says of a file, and whether it is content.
fn warm(path: &Path) -> (bool, String) {
    let mut command = Command::new(interceptor_program().unwrap());
    let output = command.arg("warmup").arg(path).current_dir("/").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn objects_that_the_s3_gateway_encrypts_are_shown_and_not_read() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).settings("[s3.sse]\nkey = \"of a test\"\n").start().unwrap();
    let (filer, s3) = (cluster.filer(), cluster.s3());
    s3.make_bucket("sse").unwrap();
    let content = Pattern::new(9).bytes(0, 9_000_000);
    s3.put("sse/plain", &content, &[]).unwrap();
    let mut encrypted = Vec::new();
    for size in [100, 70_000, content.len()] {
        for (name, headers) in [("c", &S3::SSE_C[..]), ("s3", &S3::SSE_S3[..])] {
            let object = format!("sse/{name}-{size}");
            s3.put(&object, &content[..size], headers).unwrap();
            let path = format!("/buckets/{object}");
            assert!(
                all_chunks(&filer, &path, |chunk| chunk["sse_type"].is_number()),
                "{path} is not encrypted"
            );
            encrypted.push((path, size));
        }
    }

    for options in [&[][..], &["--no-passthrough"]] {
        let mount = Mount::interceptor(&cluster.filer_addresses()).args(options).start().unwrap();
        let fails_at = if options.is_empty() && has_passthrough(&mount) { "open" } else { "read" };
        let names = fs::read_dir(mount.file("/buckets/sse")).unwrap().count();
        assert_eq!(names, encrypted.len() + 1);
        for (path, size) in &encrypted {
            let at = mount.file(path);
            assert_eq!(fs::metadata(&at).unwrap().len(), *size as u64);
            // Twice, for one line in the log.
            for _ in 0..2 {
                let (call, error) = failure(&at);
                // Some kernels report only EIO for an error while pages are filled.
                let errno = error.raw_os_error().unwrap();
                assert!(errno == libc::ENOKEY || (call == "read" && errno == libc::EIO), "{call}: {error}");
                assert_eq!(call, fails_at, "{path}");
            }
            let log = mount.log_with(&format!("{path}:")).unwrap();
            let told = log
                .lines()
                .filter(|line| line.contains("cannot be read") && line.contains(&format!("{path}:")));
            let told: Vec<_> = told.collect();
            assert_eq!(told.len(), 1, "{path}: {told:?}");
            assert!(told[0].contains("encrypted by the S3 gateway (SSE-"), "{told:?}");
        }
        reading::verify(&mount.file("/buckets/sse/plain"), &content);
        let (is_good, said) = warm(&mount.file("/buckets/sse/c-70000"));
        assert!(!is_good && said.contains("encrypted by the S3 gateway"), "{said}");
    }

    // A layer leaves them to the mount below, which knows no better.
    let below = Mount::weed(&cluster).start().unwrap();
    let stored = fs::read(below.file("/buckets/sse/c-70000")).unwrap();
    assert!(stored != content[..70_000] && stored.len() == 70_000);
    let layer = Layer::over(below.path(), ["--filer", &cluster.filer_addresses()]).unwrap();
    data::assert_same("a layer", &fs::read(below.file("/buckets/sse/c-70000")).unwrap(), &stored);
    assert_eq!(layer.read_bytes("http").unwrap(), 0.0);
}
