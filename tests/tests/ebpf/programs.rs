//! What the programs `check`, `observe` and `mount` say of eBPF, with and without privileges.

use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::process::Command;

use interceptor::ebpf;
use tests::{Bindfs, Cluster, Mount, Pattern, data, host, mount};

use crate::{CLUSTER, MIB, can_observe, programs_of};

#[test]
#[cfg_attr(not(can_observe), ignore = "needs eBPF")]
fn check_names_every_capability_with_and_without_privileges() {
    if !can_observe() {
        return;
    }
    let sights: Vec<&str> = ebpf::probe_host().iter().map(|probe| probe.capability).collect();
    assert!(sights.len() >= 7);
    let program = mount::interceptor_program().unwrap();
    let findings = |capabilities: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups"])
            .args([format!("--inh-caps={capabilities}"), format!("--ambient-caps={capabilities}")])
            .arg(&program)
            .args(["check", "--json"])
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let of_sight = |sight: &&str| {
            let all = report["findings"].as_array().unwrap();
            let finding = all.iter().find(|finding| finding["ability"] == *sight).unwrap();
            (finding["state"].as_str().unwrap().to_owned(), finding["found"].as_str().unwrap().to_owned())
        };
        sights.iter().map(of_sight).collect::<Vec<_>>()
    };
    let with = findings("+bpf,+perfmon");
    for (sight, (state, found)) in sights.iter().zip(&with) {
        assert!(state == "ok" || *sight == "passthrough reads", "{sight}: {found}");
        assert!(found.contains("tp_btf/") || found.contains("fentry/"), "{sight}: {found}");
    }
    for (sight, (state, found)) in sights.iter().zip(findings("-all")) {
        assert_eq!(state, "lost", "{sight}");
        assert!(found.contains("CAP_BPF"), "{sight}: {found}");
    }
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn observe_says_what_is_read_by_whom_and_leaves_nothing_behind() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let file = File::open(bindfs.put("file", &vec![1; MIB]).unwrap()).unwrap();
    let mut observe = Command::new(mount::interceptor_program().unwrap())
        .args(["observe", "--json", "--interval", "100ms"])
        .arg(bindfs.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(observe.stdout.take().unwrap()).lines();
    let mut buffer = vec![0; MIB];
    // The first line says that the mount is watched; reads go on until a line reports them.
    let seen = (0..100).find_map(|_| {
        let line = lines.next()?.unwrap();
        file.read_exact_at(&mut buffer, 0).unwrap();
        let report: serde_json::Value = serde_json::from_str(&line).unwrap();
        (report["reads_per_second"].as_f64()? > 0.0).then_some(report)
    });
    let report = seen.expect("no line tells of the reads");
    assert_eq!(report["readers"][0]["process"], std::process::id());
    assert!(report["bytes_per_second"].as_f64().unwrap() >= MIB as f64);
    assert_eq!(report["hottest"][0]["node"], 2, "{report}");

    let pid = observe.id();
    assert!(programs_of(pid) > 0);
    observe.kill().unwrap();
    observe.wait().unwrap();
    assert_eq!(programs_of(pid), 0);
}

#[test]
#[cfg_attr(not(all(can_mount, can_observe)), ignore = "needs mounts and eBPF")]
fn a_mount_that_may_not_load_programs_says_so_and_works() {
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let content = Pattern::new(9).bytes(0, 3 * MIB);
    cluster.filer().put("/ebpf/unseen", &content, "").unwrap();
    // Mounting takes CAP_SYS_ADMIN, which implies CAP_BPF and CAP_PERFMON if it is held in the
    // initial user namespace.
    let without = ["unshare", "--user", "--map-root-user", "--mount"];
    let Ok(mount) = Mount::interceptor(&cluster.filer_addresses()).wrapped_in(without).start() else {
        host::skipped("no mounts in user namespaces");
        return;
    };
    let (_, status) = mount.status("/api/v1/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let lost = status["lost"].as_array().unwrap();
    assert!(lost.iter().any(|lost| lost["ability"] == "eBPF programs"), "{lost:?}");
    assert!(status["kernel"].is_null(), "{status}");
    // Only processes in its user namespace may use the mount.
    let pid = mount.pid().to_string();
    let mut read = Command::new("nsenter");
    read.args(["--target", &pid, "--user", "--mount", "--preserve-credentials", "cat"]);
    let found = read.arg(mount.file("/ebpf/unseen")).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    data::assert_same("/ebpf/unseen", &found.stdout, &content);
}
