//! Keys, certificates, tokens and the log level are read anew while a daemon runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::certificates::Authority;
use tests::mount::interceptor_program;
use tests::{Cluster, Layer, Mount, Pattern, eventually, host, reading};

/// Runs `interceptor reload`. Returns the exit code and what it said.
fn reload(mount_point: &Path) -> (Option<i32>, String) {
    let output =
        Command::new(interceptor_program().unwrap()).arg("reload").arg(mount_point).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn read_key(key: &str) -> String {
    format!("[jwt.signing.read]\nkey = \"{key}\"\n")
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_key_of_read_tokens_is_renewed() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().read_key("the right one").max_mb(1).start().unwrap();
    let content = Pattern::new(1).bytes(0, 2_500_000);
    cluster.filer().put("/guarded", &content, "").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let settings = directory.path().join("mine.toml");
    fs::write(&settings, read_key("an old one")).unwrap();
    let mut mount =
        Mount::builder(&cluster).args(["--security", settings.to_str().unwrap()]).start().unwrap();
    let path = mount.file("/guarded");
    assert_eq!(reading::error_of(&path), libc::EIO);

    fs::write(&settings, "[jwt").unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(1) && said.contains("no valid TOML") && said.contains("goes on"), "{code:?} {said}");
    fs::write(&settings, read_key("the right one")).unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(0) && said.contains("keys and certificates"), "{code:?} {said}");
    reading::verify(&path, &content);

    // The signal does the same; the log tells.
    fs::write(&settings, read_key("an old one")).unwrap();
    mount.signal(Signal::SIGHUP);
    mount.log_with("reloaded: keys and certificates").unwrap();
    let refused = || {
        reading::forget(&path).ok()?;
        mount.log().ok().filter(|log| log.matches("reloaded: ").count() == 2).map(drop)
    };
    eventually("the second line", Duration::from_secs(10), refused).unwrap();
    assert!(mount.is_running());

    let (code, said) = reload(directory.path());
    assert!(code == Some(1) && said.contains("nothing is mounted"), "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_attached_path_reloads_as_well() {
    let Some(disk) = host::disk() else { return };
    if !host::can_mount() {
        return;
    }
    let layer = Layer::over(&disk.path(), [""; 0]).unwrap();
    let (code, said) = reload(&disk.path());
    assert!(code == Some(0) && said.contains("nothing to reload"), "{code:?} {said}");
    layer.detach().unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_token_of_the_status_api_and_the_log_level_are_renewed() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (token, config) = (at("token"), at("config.toml"));
    fs::write(&token, "a-token-from-before-this-test").unwrap();
    fs::write(&config, "log-level = \"warn\"\n").unwrap();
    let options = ["--status-token-file", token.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let mount = Mount::builder(&cluster).args(options).start().unwrap();
    let asked = |token: &str| {
        let url = format!("{}/metrics", mount.status_url().unwrap());
        let agent =
            ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        agent.get(&url).header("Authorization", format!("Bearer {token}")).call().unwrap().status().as_u16()
    };
    assert_eq!(asked("the-first-token-of-this-test"), 401);
    fs::write(&token, "the-first-token-of-this-test").unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(0) && said.contains("the token of the status API"), "{code:?} {said}");
    assert_eq!(asked("the-first-token-of-this-test"), 200);
    assert!(!mount.log().unwrap().contains("INFO"), "{}", mount.log().unwrap());

    fs::write(&token, "the-next-token-of-this-test").unwrap();
    fs::write(&config, "log-level = \"info\"\nthreads = 3\n").unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(0) && said.contains("what is logged; as before, until"), "{code:?} {said}");
    assert!(said.trim_end().ends_with(": --threads"), "what else changed is named: {said}");
    assert_eq!(["the-first-token-of-this-test", "the-next-token-of-this-test"].map(asked), [401, 200]);
    mount.log_with("INFO reloaded: ").unwrap();
    fs::write(&token, "short").unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(1) && said.contains("at least 16"), "{code:?} {said}");
    fs::write(&token, "a-token-beside-a-wrong-level").unwrap();
    fs::write(&config, "log-level = \"loud\"\n").unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(1) && said.contains("loud"), "{code:?} {said}");
    assert_eq!(asked("the-next-token-of-this-test"), 200);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_certificate_of_the_status_api_is_renewed() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    issue(directory.path(), "the first");
    fs::copy(at("ca.crt"), at("first.crt")).unwrap();
    let (certificate, key) = (at("member.crt"), at("member.key"));
    let options = ["--status-tls-cert", &certificate, "--status-tls-key", &key];
    let mount = Mount::builder(&cluster).args(options).start().unwrap();
    let plain = mount.status_url().unwrap();
    let secure = format!("https://localhost:{}", plain.rsplit_once(':').unwrap().1.trim_end_matches('/'));
    let status = |arguments: &[&str]| {
        let mut command = Command::new(interceptor_program().unwrap());
        let output = command.arg("status").args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let trusting = |authority: &str| status(&["--status-addr", &secure, "--status-tls-ca", &at(authority)]);
    let mounted = mount.path().to_str().unwrap();

    // A command on this host needs no certificate, one that encrypts needs the right authority.
    for (code, said) in [status(&[mounted]), trusting("ca.crt")] {
        assert!(code == Some(0) && said.contains(mounted), "{code:?} {said}");
    }
    let (code, said) = status(&["--status-addr", &secure]);
    assert!(code == Some(1) && said.contains("--status-tls-ca"), "{code:?} {said}");

    issue(directory.path(), "the next");
    let (code, said) = reload(mount.path());
    assert!(code == Some(0) && said.contains("the certificate of the status API"), "{code:?} {said}");
    assert_eq!(["ca.crt", "first.crt"].map(|authority| trusting(authority).0), [Some(0), Some(1)]);

    // What cannot be used changes nothing.
    fs::write(&key, "no key").unwrap();
    let (code, said) = reload(mount.path());
    assert!(code == Some(1) && said.contains("--status-tls-key"), "{code:?} {said}");
    assert_eq!(trusting("ca.crt").0, Some(0));
}

/// Writes an authority, and a certificate of it, where a cluster and its clients look for them.
fn issue(directory: &Path, name: &str) {
    let authority = Authority::new(name);
    authority.write(directory);
    authority.issue(directory, "member");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn certificates_of_another_authority_are_taken_over() {
    if !host::can_mount() {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    issue(keys.path(), "an authority");
    let at = |name: &str| keys.path().join(name).display().to_string();
    let (ca, certificate, key) = (at("ca.crt"), at("member.crt"), at("member.key"));
    let identity = format!("cert = \"{certificate}\"\nkey = \"{key}\"\n");
    let settings = format!(
        "[grpc]\nca = \"{ca}\"\n[grpc.master]\n{identity}[grpc.volume]\n{identity}[grpc.filer]\n{identity}\
         [grpc.client]\n{identity}[https.volume]\n{identity}ca = \"{ca}\"\n\
         [https.client]\nenabled = true\n{identity}ca = \"{ca}\"\n"
    );
    let cluster = Cluster::builder().max_mb(1).settings(&settings).start().unwrap();
    let content = Pattern::new(3).bytes(0, 2_500_000);
    cluster.filer().put("/before", &content, "").unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/before"), &content);

    // The whole cluster changes its authority, as it would after that has expired.
    issue(keys.path(), "another authority");
    cluster.restart().unwrap();
    let other = Pattern::new(4).bytes(0, 2_500_000);
    cluster.filer().put("/after", &other, "").unwrap();
    assert!(fs::metadata(mount.file("/after")).is_err(), "the daemon trusts the old authority");
    let (code, said) = reload(mount.path());
    assert!(code == Some(0) && said.contains("keys and certificates"), "{code:?} {said}");
    let found = || fs::metadata(mount.file("/after")).is_ok().then_some(());
    eventually("the filer", Duration::from_secs(20), found).unwrap();
    reading::verify(&mount.file("/after"), &other);
    assert!(mount.is_running());
}
