//! Which reads were slow, and why: in the log, in the status API, and in `interceptor status`.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::mount::interceptor_program;
use tests::{Cluster, Fault, Mount, Pattern, data, eventually, host};

const SIZE: usize = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(30);

fn status(mount: &Mount) -> Value {
    serde_json::from_str(&mount.status("/api/v1/status").unwrap().1).unwrap()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_read_that_waited_for_a_server_names_it() {
    if !host::can_mount() {
        return;
    }
    // Of files in one directory, the next ones would be fetched before they are read.
    let path = |number: usize| format!("/directory-{number}/file");
    let cluster = Cluster::builder().proxied().start().unwrap();
    let contents = [1, 2, 3].map(|number| Pattern::new(number).bytes(0, SIZE));
    for (number, content) in contents.iter().enumerate() {
        cluster.filer().put(&path(number), content, "").unwrap();
    }
    let args = ["--volume-server-access", "publicUrl", "--no-ebpf", "--slow-read=1s", "--read-retry-time=4s"];
    let mount = Mount::interceptor(&cluster.filer_addresses()).args(args).start().unwrap();
    let server = cluster.proxies()[0].address();
    let read = |number: usize| fs::read(mount.file(&path(number)));

    data::assert_same("in time", &read(0).unwrap(), &contents[0]);
    assert_eq!(status(&mount)["slow_reads"], Value::Array(Vec::new()), "one that was in time");

    cluster.proxies()[0].set(Fault::StallAfter(0));
    thread::scope(|scope| {
        let reader =
            thread::Builder::new().name("slow-reader".into()).spawn_scoped(scope, || read(1)).unwrap();
        let waiting = eventually("a read that waits", TIMEOUT, || {
            let waiting = status(&mount)["waiting_reads"].clone();
            (waiting["oldest_seconds"].as_f64()? > 1.0).then_some(waiting)
        });
        let waiting = waiting.unwrap();
        assert_eq!(waiting["oldest_path"], "/directory-1/file", "{waiting}");
        assert!(mount.metric("interceptor_reads_waiting", &[]).unwrap() >= 1.0);
        cluster.proxies()[0].set(Fault::None);
        data::assert_same("late", &reader.join().unwrap().unwrap(), &contents[1]);
    });
    let after = status(&mount);
    let slow = &after["slow_reads"][0];
    assert_eq!(
        (&slow["path"], &slow["caller_name"], &slow["error"]),
        (&"/directory-1/file".into(), &"slow-reader".into(), &Value::Null)
    );
    assert!(slow["seconds"].as_f64().unwrap() > 1.0, "{slow}");
    let steps = slow["steps"].as_array().unwrap();
    let requests: Vec<_> =
        steps.iter().filter(|step| step["step"] == "request" && step["server"] == *server).collect();
    assert!(requests.iter().any(|step| !step["error"].is_null()), "the request that was cut: {slow}");
    assert!(requests.iter().any(|step| step["error"].is_null() && step["first_byte"].is_f64()), "{slow}");
    assert_eq!(after["waiting_reads"]["count"], 0);

    cluster.proxies()[0].set(Fault::StallAfter(0));
    assert_eq!(read(2).unwrap_err().raw_os_error(), Some(libc::EIO));
    let failed = status(&mount)["slow_reads"][0].clone();
    assert_eq!(failed["path"], "/directory-2/file");
    assert!(failed["error"].as_str().unwrap().contains(&server), "{failed}");

    let log = mount.log_with("slow read").unwrap();
    assert!(log.contains("/directory-1/file") && log.contains(&server), "{log}");
    let total = mount.metric("interceptor_slow_reads_total", &[]).unwrap();
    assert!(total >= 2.0, "{total}");
    let address = mount.status_url().unwrap().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let status = ["status", "--status-addr", &address];
    let printed = Command::new(interceptor_program().unwrap()).args(status).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(
        printed.contains("of /directory-1/file by slow-reader") && printed.contains(&server),
        "{printed}"
    );
}
