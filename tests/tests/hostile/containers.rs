//! Root of a container that shares the host's network, which the kernel shows as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rdma_engine::client::{Client, ClientOptions, ReadError, ReadTarget, Trust};
use rdma_engine::protocol::Transport;
use tests::{Cluster, Engine, Needles, Pattern, engine, host};

use super::fake;

/// A way of being root in a container: a program that runs another in it.
struct Container {
    what: &'static str,
    command: Vec<String>,
}

/// Containers that this host lets us have, each with something of its own.
fn containers(root: &Path) -> Vec<Container> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    let mut all = vec![
        Container { what: "processes", command: words("unshare --pid --fork --kill-child --mount-proc") },
        Container { what: "users", command: words("unshare --user --map-root-user") },
    ];
    // A root directory on a file system of its own, with the host's programs in it.
    let binds: String = ["usr", "lib", "lib64", "bin", "proc", "dev", "tmp"]
        .iter()
        .filter(|name| Path::new("/").join(name).exists())
        .map(|name| format!("mkdir -p $0/{name}; mount --rbind /{name} $0/{name}; "))
        .collect();
    // The programs, and the files that the test makes.
    let programs = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let binds: String = [programs, std::env::temp_dir()]
        .iter()
        .map(|path| path.display())
        .fold(binds, |binds, path| binds + &format!("mkdir -p $0{path}; mount --bind {path} $0{path}; "));
    let script = format!("mount -t tmpfs container $0 && {binds} exec chroot $0 \"$@\"");
    let mut command = words("unshare --mount sh -c");
    command.extend([script, root.display().to_string()]);
    all.push(Container { what: "a root directory", command });
    all.retain(|container| {
        let can = container.run(&["true"]).is_ok_and(|output| output.status.success());
        if !can {
            host::skipped(&format!("no container with {} of its own", container.what));
        }
        can
    });
    all
}

/// What [`asks_for_descriptors`] prints here.
fn ask_here(engine: &str) -> String {
    let output = asking(Command::new(std::env::current_exe().unwrap()), engine);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn asking(mut command: Command, engine: &str) -> Output {
    command.args(["--exact", "containers::asks_for_descriptors", "--ignored", "--nocapture"]);
    command.env(ENGINE, engine).output().unwrap()
}

/// The variable that tells [`asks_for_descriptors`] where the engine is.
const ENGINE: &str = "HOSTILE_ENGINE";

#[test]
#[ignore = "the program that others run in containers"]
fn asks_for_descriptors() {
    let Ok(engine) = std::env::var(ENGINE) else { return };
    println!("{}", fake::local_session(&engine));
}

impl Container {
    /// What [`asks_for_descriptors`] prints in the container.
    fn run_here(&self, engine: &str) -> String {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(std::env::current_exe().unwrap());
        let output = asking(command, engine);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn run(&self, program: &[&str]) -> std::io::Result<Output> {
        Command::new(&self.command[0]).args(&self.command[1..]).args(program).output()
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn root_of_a_container_gets_no_descriptor_unless_it_knows_the_secret() {
    if !host::can_mount() {
        return;
    }
    let program = engine::program().unwrap();
    let program = program.to_str().unwrap();
    let root = tempfile::tempdir().unwrap();
    let containers = containers(root.path());
    for (builder, is_keyed) in [
        (Cluster::builder(), false),
        (Cluster::builder().read_key("a secret of the cluster's servers"), true),
    ] {
        let cluster = builder.start().unwrap();
        let needles = Needles::new(&cluster);
        let at = needles.assign("").unwrap();
        let content = Pattern::new(1).bytes(0, 100_000);
        needles.put(&at, &content, "", &[]).unwrap();
        let engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
        let right = cluster.directory().join("security.toml");
        let none = cluster.directory().join("none.toml");
        fs::write(&none, "").unwrap();
        let read = |run: &dyn Fn(&[&str]) -> Output, transport: &str, security: &PathBuf| {
            let (address, security) = (engine.address(), security.to_str().unwrap());
            run(&[program, "read", address, &at.fid, "--transport", transport, "--security", security])
        };
        let here = |words: &[&str]| Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(read(&here, "local", &right).stdout == content, "root of the host may");
        let told = ask_here(engine.address());
        assert!(told.contains("welcome"), "{told}");
        for container in &containers {
            let inside = |words: &[&str]| container.run(words).unwrap();
            assert!(read(&inside, "tcp", &right).stdout == content, "it works at all");
            let refused = read(&inside, "local", &none);
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.stdout.is_empty() && !refused.status.success(), "{}: {told}", container.what);
            // A client of its own, which does not authenticate the engine.
            let client = container.run_here(engine.address());
            assert!(client.contains("refused: NotAllowed"), "{}: {client}", container.what);
            if is_keyed {
                assert!(read(&inside, "local", &right).stdout == content, "who knows the secret may");
            }
        }
    }
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn an_engine_of_a_containers_root_is_not_the_hosts() {
    if !host::can_serve() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let at = needles.assign("").unwrap();
    needles.put(&at, &[7; 1000], "", &[]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ask = |engine: &Engine| {
        let trust = Trust { volume_server: Some(cluster.volume_servers()[0].address()), ..Trust::default() };
        let options = ClientOptions { transports: vec![Transport::Local], trust, ..ClientOptions::default() };
        let client = Client::new(engine.address(), options);
        let (fid, deadline) = (at.fid.parse().unwrap(), tokio::time::Instant::now() + super::WAIT_TIMEOUT);
        let mut bytes = [0; 1000];
        let target = ReadTarget { fid, offset: 0, token: None };
        runtime.block_on(async { client.read(target, &mut bytes, deadline).await }).map(|_| bytes)
    };
    let server = &cluster.volume_servers()[0];
    assert_eq!(ask(&cluster.start_engine(server).unwrap()).unwrap(), [7; 1000]);
    for container in containers(root.path()) {
        let engine = cluster.start_engine_through(&container.command, server).unwrap();
        let error = ask(&engine).unwrap_err();
        assert!(matches!(error, ReadError::Unproved(_)), "{}: {error}", container.what);
    }
}
