//! Options that are set in files and by variables: every option of every command, in every place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::engine;
use tests::mount::interceptor_program;

/// A program, and what is known of it here.
struct Configured {
    program: PathBuf,
    /// How its variables begin.
    prefix: &'static str,
    commands: &'static [&'static str],
    /// What makes other options right.
    needed: &'static [&'static str],
}

fn programs() -> [Configured; 2] {
    [
        Configured {
            program: interceptor_program().unwrap(),
            prefix: "INTERCEPTOR_",
            commands: &["mount", "attach", "check", "doctor"],
            needed: &["--filer=filer:8888", "--disk-cache=/disk"],
        },
        Configured {
            program: engine::program().unwrap(),
            prefix: "RDMA_ENGINE_",
            commands: &["serve"],
            needed: &["--volume-dir=/volumes"],
        },
    ]
}

/// A value that an option takes and that is not its default.
fn sample(option: &str) -> &'static str {
    match option {
        "allow-other"
        | "no-local"
        | "no-verbs"
        | "nonempty"
        | "include-system-entries"
        | "noexec"
        | "nosymfollow"
        | "force" => "true",
        "passthrough" | "placement" | "keep-awake" | "ebpf" => "false",
        "filer" => "a:1,b:2",
        "filer-path" => "/buckets/x",
        "status-addr" => "127.0.0.1:1234",
        "status-token-file" | "status-tls-cert" | "status-tls-key" | "security" | "disk-cache"
        | "index-dir" | "volume-dir" => "/some/where",
        "map-uid" | "map-gid" => "1000:0,1001:1",
        "uid" | "gid" => "1000",
        "file-mode" | "dir-mode" | "umask" => "0750",
        "readahead-kb" => "256",
        "threads" => "3",
        "fsname" | "data-center" | "device" => "a-name",
        "cache-size" => "64 MiB",
        "disk-cache-size" => "128MiB",
        "cache-prefault" => "off",
        "transport" => "tcp,http",
        "rdma-port" => "1000",
        "engine" => "a:1=b:2",
        "volume-server-access" => "filerProxy",
        "concurrent-readers" => "9",
        "read-retry-time" | "slow-read" | "grace" | "lease" | "idle-timeout" => "7s",
        "otlp" => "http://127.0.0.1:4317",
        "read-cache" => "on",
        "log-level" => "debug",
        "log-format" => "json",
        "listen" => "localhost:18000",
        "staging" | "max-staging" | "max-waiting" => "2MiB",
        "max-sessions" | "max-peer-sessions" | "max-in-flight" => "11",
        other => panic!("no value of --{other} is known here"),
    }
}

/// The option without which another one is refused.
fn other_half(option: &str) -> Option<&'static str> {
    match option {
        "status-tls-cert" => Some("status-tls-key"),
        "status-tls-key" => Some("status-tls-cert"),
        _ => None,
    }
}

impl Configured {
    /// Runs `config show` for a command, with variables and further arguments.
    fn show(&self, command: &str, variables: &[(String, String)], arguments: &[String]) -> Output {
        let mut run = Command::new(&self.program);
        run.args(["config", "show", command]).args(arguments).env_remove("INTERCEPTOR_BIN");
        run.envs(variables.iter().cloned()).output().unwrap()
    }

    /// The names of all options that can be set.
    fn known(&self, file: &Path) -> Vec<String> {
        fs::write(file, "qqqqqq = 1").unwrap();
        let output = self.show(self.commands[0], &[], &["--config".into(), file.display().to_string()]);
        let said = String::from_utf8(output.stderr).unwrap();
        let (_, list) = said.split_once("known are ").unwrap_or_else(|| panic!("{said}"));
        list.lines().next().unwrap().split(", ").map(str::to_owned).collect()
    }

    fn variable(&self, option: &str) -> String {
        format!("{}{}", self.prefix, option.replace('-', "_").to_uppercase())
    }
}

/// What stands in the file of an option with a value.
fn setting(option: &str, value: &str) -> String {
    match value {
        "true" | "false" => format!("\n{option} = {value}\n"),
        _ => format!("\n{option} = \"{value}\"\n"),
    }
}

#[test]
fn half_a_pair_of_options_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("main.toml");
    fs::write(&file, "status-tls-cert = \"/some/where\"\n").unwrap();
    let check = |command: &str, further: &[&str]| {
        let mut run = Command::new(interceptor_program().unwrap());
        run.args(["config", "check", command, "--filer=filer:8888", "--config"]).arg(&file).args(further);
        let output = run.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for command in ["mount", "attach"] {
        let (code, said) = check(command, &[]);
        let is_named = said.contains("main.toml, line 1") && said.contains("--status-tls-key");
        assert!(code == Some(2) && is_named, "{command}: {code:?} {said}");
        let (code, said) = check(command, &["--status-tls-key=/some/where"]);
        assert!(
            code == Some(1) && said.contains("cannot use --status-tls-cert"),
            "{command}: {code:?} {said}"
        );
    }
}

#[test]
fn every_option_can_be_set_in_every_place_and_every_typo_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (file, drop_in) = (directory.path().join("main.toml"), directory.path().join("main.toml.d/1.toml"));
    fs::create_dir(directory.path().join("main.toml.d")).unwrap();
    let clear = || [&file, &drop_in].iter().for_each(|path| fs::write(path, "").unwrap());
    let mut checked = 0;
    for configured in programs() {
        clear();
        for option in configured.known(&file) {
            let value = sample(&option);
            let is_needed = |needed: &&&str| !needed.starts_with(&format!("--{option}="));
            let mut base: Vec<String> =
                configured.needed.iter().filter(is_needed).map(|needed| (*needed).to_owned()).collect();
            base.extend(["--config".into(), file.display().to_string()]);
            for command in configured.commands {
                clear();
                fs::write(&file, setting(&option, value)).unwrap();
                let mut base = base.clone();
                if let Some(other) = other_half(&option) {
                    if !["mount", "attach"].contains(command) {
                        continue;
                    }
                    base.push(format!("--{other}={}", sample(other)));
                }
                let shown = |variables: &[(String, String)], arguments: &[String]| {
                    let output = configured.show(command, variables, arguments);
                    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
                    assert!(output.status.success(), "--{option} of {command}: {said}");
                    let mut lines = said.lines().map(str::to_owned);
                    lines.find(|line| line.starts_with(&format!("{option} = ")))
                };
                // It may be an option of another command.
                let Some(in_file) = shown(&[], &base) else { continue };
                let expected = setting(&option, value);
                let is = |line: &str, origin: &str| {
                    let begins = line.starts_with(expected.trim());
                    assert!(begins && line.ends_with(&format!(" # {origin}")), "{command}: {line}");
                };
                is(&in_file, &format!("{}, line 2", file.display()));
                clear();
                fs::write(&drop_in, setting(&option, value)).unwrap();
                is(&shown(&[], &base).unwrap(), &format!("{}, line 2", drop_in.display()));
                let variable = configured.variable(&option);
                let set = [(variable.clone(), value.to_owned())];
                is(&shown(&set, &base).unwrap(), &format!("{variable} of the environment"));
                let is_flag = ["no-local", "no-verbs"].contains(&option.as_str());
                let typed = if is_flag { format!("--{option}") } else { format!("--{option}={value}") };
                let typed = [&[typed][..], &base].concat();
                is(&shown(&set, &typed).unwrap(), "typed");

                // Its second letter is missing.
                let typo = format!("{}{}", &option[..1], &option[2..]);
                let refused = |variables: &[(String, String)], arguments: &[String], meant: &str| {
                    let output = configured.show(command, variables, arguments);
                    let said = String::from_utf8(output.stderr).unwrap();
                    let is_named = output.status.code() == Some(2) && said.contains(meant);
                    assert!(is_named, "{typo} of {command}: {:?} {said}", output.status.code());
                };
                clear();
                fs::write(&drop_in, setting(&typo, value)).unwrap();
                refused(&[], &base, &option);
                clear();
                fs::write(&file, setting(&typo, value)).unwrap();
                refused(&[], &base, &option);
                clear();
                refused(&[(configured.variable(&typo), value.to_owned())], &base, &variable);
                let typed = format!("--{typo}");
                refused(&[], &[&[format!("{typed}={value}")][..], &base].concat(), &typed);
                checked += 1;
            }
        }
    }
    println!("{checked} options in four places");
    assert!(checked > 60, "{checked}");
}
