//! Exported metrics: `promtool` accepts them, alert rules and the Grafana dashboard use only
//! existing ones, and the documentation lists every metric.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::{Cluster, Mount, Pattern, StatusPage, host};

const MIB: usize = 1 << 20;
const FILE: &str = "some-file-of-a-user";

/// The labels that metrics may have. None of them has values that users choose.
const LABELS: [&str; 21] = [
    "backing",
    "event",
    "filer_path",
    "from",
    "kind",
    "layer",
    "le",
    "mount_point",
    "outcome",
    "percentile",
    "reason",
    "request",
    "slot",
    "source",
    "state",
    "to",
    "transport",
    "trigger",
    "version",
    "way",
    "window",
];

/// How the names of metrics begin.
const PREFIXES: [&str; 3] = ["interceptor_", "rdma_engine_", "process_"];

/// What is exported only where eBPF watches, and only where the kernel asks about opens.
const ONLY_SOMETIMES: [&str; 3] = ["interceptor_kernel_", "interceptor_ebpf_", "interceptor_opens_total"];

fn documentation(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../doc").join(path)
}

fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(documentation("prometheus"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn accepted(arguments: &[&str], input: &str) {
    let output = promtool(arguments, input);
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{text}");
}

/// What a mount and its engine export after some reads.
fn expositions() -> String {
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put(&format!("/{FILE}"), &Pattern::new(1).bytes(0, 8 * MIB), "").unwrap();
    let disk = tempfile::tempdir().unwrap();
    let mount = Mount::builder(&cluster).engines(&cluster, "tcp").arg("--disk-cache").arg(disk.path());
    let mount = mount.start().unwrap();
    for _ in 0..2 {
        fs::read(mount.path().join(FILE)).unwrap();
    }
    let engine = StatusPage::at(cluster.engines()[0].status_url().to_owned());
    let pages = [mount.status_page().unwrap(), engine];
    let texts = pages.map(|page| {
        let (code, text) = page.get("/metrics").unwrap();
        assert_eq!(code, 200);
        accepted(&["check", "metrics"], &text);
        text
    });
    texts.concat()
}

/// The names of the families of an exposition.
fn families(exposition: &str) -> BTreeSet<String> {
    let names = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    names.map(str::to_owned).collect()
}

/// The names of metrics of ours that a text has.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let ours = words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)));
    ours.map(str::to_owned).collect()
}

/// Whether `name` is that of a family or of a part of a histogram.
fn exists(name: &str, families: &BTreeSet<String>) -> bool {
    let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
    let sometimes = ONLY_SOMETIMES.iter().any(|prefix| name.starts_with(prefix));
    let seen = families.iter().any(|family| family.starts_with("interceptor_kernel_"));
    families.contains(name) || whole.is_some_and(|whole| families.contains(whole)) || (sometimes && !seen)
}

fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|panel| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    });
    queries.collect()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_exported_is_what_is_asked_for_and_documented() {
    if !host::can_mount() || !host::can_serve() || !host::has_program("promtool", &["--version"]) {
        return;
    }
    let exposition = expositions();
    let families = families(&exposition);
    if !families.iter().any(|family| family.starts_with("interceptor_kernel_")) {
        host::skipped("metrics of eBPF, which sees nothing here, are taken to exist");
    }

    // Names of files leave through no label, and labels are few.
    assert!(!exposition.contains(FILE));
    let samples = exposition.lines().filter(|line| !line.starts_with('#'));
    let labels = samples.filter_map(|line| line.split_once('{')?.1.rsplit_once('}'));
    for (labels, _) in labels {
        for name in labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(name, _)| name) {
            assert!(LABELS.contains(&name), "a label {name} in {{{labels}}}");
        }
    }
    assert!(exposition.lines().count() < 2000, "{} lines", exposition.lines().count());

    // Alerts.
    accepted(&["check", "rules", "interceptor.rules.yml"], "");
    accepted(&["test", "rules", "interceptor.rules.test.yml"], "");
    let rules = fs::read_to_string(documentation("prometheus/interceptor.rules.yml")).unwrap();
    for name in named(&rules) {
        assert!(exists(&name, &families), "an alert asks for {name}");
    }

    // Grafana: what its panels ask for exists, and can be asked so.
    let text = fs::read_to_string(documentation("grafana/interceptor.json")).unwrap();
    let queries = expressions(&serde_json::from_str(&text).unwrap());
    assert!(queries.len() > 20, "{queries:?}");
    for (panel, query) in &queries {
        let names = named(query);
        assert!(!names.is_empty(), "the panel {panel} asks for nothing of ours: {query}");
        for name in names {
            assert!(exists(&name, &families), "the panel {panel} asks for {name}");
        }
    }
    let record = |(index, (_, query)): (usize, &(String, String))| {
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        json!({"record": format!("panel:query_{index}"), "expr": query})
    };
    let recorded: Vec<Value> = queries.iter().enumerate().map(record).collect();
    let directory = tempfile::tempdir().unwrap();
    let as_rules = directory.path().join("panels.yml");
    // What is JSON is YAML.
    fs::write(&as_rules, json!({"groups": [{"name": "panels", "rules": recorded}]}).to_string()).unwrap();
    accepted(&["check", "rules", as_rules.to_str().unwrap()], "");

    // The documentation, both ways.
    let documented = named(&fs::read_to_string(documentation("METRICS.md")).unwrap());
    let missing: Vec<_> = families.difference(&documented).collect();
    assert!(missing.is_empty(), "METRICS.md does not know {missing:?}");
    let invented: Vec<_> = documented.iter().filter(|name| !exists(name, &families)).collect();
    assert!(invented.is_empty(), "METRICS.md tells of {invented:?}");
}
