//! A real SeaweedFS: `weed master`, `weed volume` and `weed filer` as processes of their own.
//!
//! They are separate processes, even for the smallest cluster, so that any of them can be killed
//! and restarted. All bind 127.0.0.1, run in a directory of the cluster (a temporary one unless
//! given), log to files there and send no telemetry. [`ClusterBuilder::start`] returns when every
//! volume server is known to the master and every filer has accepted a file; a restarted
//! [`Server`] is awaited the same way.
//!
//! A `security.toml` always lies in the directory, empty if need be: it keeps the host's own
//! settings out.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ports::PortLease;
use crate::process::Process;
use crate::proxy::FaultProxy;
use crate::{Engine, Filer, S3, eventually, tools};

/// Longest wait for a server to become ready; two seconds are usual.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What a cluster shall be; [`Cluster::builder`] gives the smallest one.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    directory: Option<PathBuf>,
    volume_servers: usize,
    filers: usize,
    replication: String,
    max_mb: u32,
    inline_below: u32,
    encrypt: bool,
    settings: String,
    proxied: bool,
    volume_size_limit_mb: u32,
}

impl ClusterBuilder {
    /// Keeps data and logs in `directory`, which may hold those of an earlier run, instead of a
    /// temporary one.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// The number of volume servers.
    #[must_use]
    pub fn volume_servers(mut self, count: usize) -> Self {
        self.volume_servers = count;
        self
    }

    /// The number of filers; each has its own store and they exchange what changes.
    #[must_use]
    pub fn filers(mut self, count: usize) -> Self {
        self.filers = count;
        self
    }

    /// The placement of copies, in SeaweedFS's three digits (`001`: one more copy in the same
    /// rack).
    #[must_use]
    pub fn replication(mut self, placement: &str) -> Self {
        placement.clone_into(&mut self.replication);
        self
    }

    /// The filers' chunk size in MiB.
    #[must_use]
    pub fn max_mb(mut self, size: u32) -> Self {
        self.max_mb = size;
        self
    }

    /// The filers keep the content of smaller files (in bytes) in the entry.
    #[must_use]
    pub fn inline_below(mut self, size: u32) -> Self {
        self.inline_below = size;
        self
    }

    /// The filers encrypt every chunk.
    #[must_use]
    pub fn encrypt(mut self) -> Self {
        self.encrypt = true;
        self
    }

    /// Adds to the cluster's `security.toml`, which servers, `weed mount` and mounts of this
    /// cluster obey.
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings.push_str(toml);
        self
    }

    /// Volume servers demand a token signed with `key` for reads.
    #[must_use]
    pub fn read_key(self, key: &str) -> Self {
        self.settings(&format!("[jwt.signing.read]\nkey = \"{key}\"\nexpires_after_seconds = 60\n"))
    }

    /// Puts a [`FaultProxy`] before each volume server and announces it as the server's public
    /// URL.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// The size at which the master stops writing to a volume.
    #[must_use]
    pub fn volume_size_limit_mb(mut self, size: u32) -> Self {
        self.volume_size_limit_mb = size;
        self
    }

    /// Starts the servers and waits until they are ready.
    ///
    /// # Errors
    /// When `weed` is missing or a server does not become ready; the text has the tail of its log.
    /// Servers that did start are ended.
    pub fn start(self) -> anyhow::Result<Cluster> {
        let program = tools::weed()?;
        let (temporary, directory) = match &self.directory {
            Some(directory) => (None, directory.clone()),
            None => {
                let temporary = tempfile::Builder::new().prefix("interceptor-cluster-").tempdir()?;
                let path = temporary.path().to_owned();
                (Some(temporary), path)
            }
        };
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        fs::write(directory.join("security.toml"), &self.settings)?;

        let grace = if temporary.is_some() { Duration::ZERO } else { Duration::from_secs(5) };
        let launch = Launch { program, directory, grace };
        let master = self.master(&launch)?;
        let mut volumes = Vec::new();
        let mut proxies = Vec::new();
        for index in 0..self.volume_servers {
            let lease = PortLease::take()?;
            let mut extra = Vec::new();
            if self.proxied {
                let proxy = FaultProxy::start(&lease.address())?;
                extra.push(format!("-publicUrl={}", proxy.address()));
                proxies.push(proxy);
            }
            volumes.push(self.volume(&launch, index, lease, &master, extra)?);
        }
        let filers = vec![self.filer(&launch, 0, &master)?];
        let (engines, s3) = (OnceLock::new(), OnceLock::new());
        let mut cluster =
            Cluster { filers, volumes, master, proxies, launch, engines, s3, _temporary: temporary };
        cluster.master.await_answer("/cluster/healthz")?;
        for volume in &cluster.volumes {
            cluster.await_volume_server(volume)?;
        }
        await_filer(&cluster.filers[0])?;
        // A new filer copies the tree of the existing ones, and gives up if one does not answer
        // yet.
        for index in 1..self.filers {
            let filer = self.filer(&cluster.launch, index, &cluster.master)?;
            await_filer(&filer)?;
            cluster.filers.push(filer);
        }
        Ok(cluster)
    }

    fn master(&self, launch: &Launch) -> anyhow::Result<Server> {
        let lease = PortLease::take()?;
        let data = launch.make("master")?;
        let mut args = addresses("master", &lease);
        args.extend([
            format!("-mdir={}", data.display()),
            "-peers=none".into(),
            "-telemetry=false".into(),
            format!("-volumeSizeLimitMB={}", self.volume_size_limit_mb),
            format!("-defaultReplication={}", self.replication),
        ]);
        Server::start(launch, "master", lease, args)
    }

    fn volume(
        &self,
        launch: &Launch,
        index: usize,
        lease: PortLease,
        master: &Server,
        extra: Vec<String>,
    ) -> anyhow::Result<Server> {
        let name = format!("volume{index}");
        let data = launch.make(&name)?;
        let mut args = addresses("volume", &lease);
        args.extend([
            format!("-dir={}", data.display()),
            format!("-master={}", master.address()),
            "-max=100".into(),
            "-preStopSeconds=0".into(),
            // The remote storage of tests is on this host, too.
            "-volume.allowUntrustedRemoteEndpoints".into(),
        ]);
        args.extend(extra);
        Server::start(launch, &name, lease, args)
    }

    fn filer(&self, launch: &Launch, index: usize, master: &Server) -> anyhow::Result<Server> {
        let lease = PortLease::take()?;
        let name = format!("filer{index}");
        let data = launch.make(&name)?;
        let mut args = addresses("filer", &lease);
        args.extend([
            format!("-master={}", master.address()),
            format!("-defaultStoreDir={}", data.display()),
            // Relative to where it runs: the full path may be too long for a socket.
            format!("-localSocket={name}/socket"),
            format!("-maxMB={}", self.max_mb),
            format!("-saveToFilerLimit={}", self.inline_below),
            // The remote storage of tests is on this host, too.
            "-allowUntrustedRemoteEndpoints".into(),
        ]);
        if self.encrypt {
            args.push("-encryptVolumeData".into());
        }
        Server::start(launch, &name, lease, args)
    }
}

/// A running SeaweedFS. Dropping it ends every process.
#[derive(Debug)]
pub struct Cluster {
    filers: Vec<Server>,
    volumes: Vec<Server>,
    master: Server,
    proxies: Vec<FaultProxy>,
    launch: Launch,
    engines: OnceLock<Vec<Engine>>,
    s3: OnceLock<Server>,
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// One master, one volume server, one filer with 4 MiB chunks.
    #[must_use]
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            directory: None,
            volume_servers: 1,
            filers: 1,
            replication: "000".into(),
            max_mb: 4,
            inline_below: 0,
            encrypt: false,
            settings: String::new(),
            proxied: false,
            volume_size_limit_mb: 1024,
        }
    }

    /// A client of the first filer.
    #[must_use]
    pub fn filer(&self) -> Filer {
        Filer::new(&self.filers[0].address())
    }

    /// The addresses of all filers, comma separated, as `--filer` takes them.
    #[must_use]
    pub fn filer_addresses(&self) -> String {
        self.filers.iter().map(Server::address).collect::<Vec<_>>().join(",")
    }

    /// The filer processes.
    #[must_use]
    pub fn filers(&self) -> &[Server] {
        &self.filers
    }

    /// The volume server processes.
    #[must_use]
    pub fn volume_servers(&self) -> &[Server] {
        &self.volumes
    }

    /// Makes two empty volumes on each volume server. Without them the master chooses servers for
    /// the first volumes by chance, and some get none.
    ///
    /// # Errors
    /// When the master refuses.
    pub fn grow_everywhere(&self) -> anyhow::Result<()> {
        for server in &self.volumes {
            let grow = format!("/vol/grow?count=2&dataNode={}", server.address());
            self.master.get(&grow)?;
        }
        Ok(())
    }

    /// The master process.
    #[must_use]
    pub fn master(&self) -> &Server {
        &self.master
    }

    /// The proxies before the volume servers, in the same order; none unless
    /// [`ClusterBuilder::proxied`].
    #[must_use]
    pub fn proxies(&self) -> &[FaultProxy] {
        &self.proxies
    }

    /// Starts an engine for the directory of `server`, with the cluster's `security.toml`, on free
    /// ports.
    ///
    /// # Errors
    /// When it does not listen in time; the text has the tail of its log.
    pub fn start_engine(&self, server: &Server) -> anyhow::Result<Engine> {
        self.start_engine_through(&[], server)
    }

    /// As [`Cluster::start_engine`], with another `security.toml`.
    ///
    /// # Errors
    /// See [`Cluster::start_engine`].
    pub fn start_engine_with(&self, server: &Server, security: &Path) -> anyhow::Result<Engine> {
        Engine::start(&[], server.directory(), security.to_owned())
    }

    /// As [`Cluster::start_engine`], through a command line that execs the engine or ends with it,
    /// as `unshare --kill-child` does.
    ///
    /// # Errors
    /// See [`Cluster::start_engine`].
    pub fn start_engine_through(&self, wrapper: &[String], server: &Server) -> anyhow::Result<Engine> {
        Engine::start(wrapper, server.directory(), self.directory().join("security.toml"))
    }

    /// An engine beside each volume server, in the same order; they are started by the first call.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    pub fn engines(&self) -> &[Engine] {
        let start = |server| self.start_engine(server).expect("an engine starts");
        self.engines.get_or_init(|| self.volumes.iter().map(start).collect())
    }

    /// A client of an S3 gateway of the cluster, which is started by the first call.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn s3(&self) -> S3 {
        let start = || s3_gateway(&self.launch, &self.filers[0]).expect("an S3 gateway starts");
        S3::new(&self.s3.get_or_init(start).address())
    }

    /// Where data, logs and `security.toml` are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.launch.directory
    }

    /// Starts a volume server again after [`Server::kill`] and waits until the master knows it.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_volume_server(&self, index: usize) -> anyhow::Result<()> {
        self.volumes[index].restart()?;
        self.await_volume_server(&self.volumes[index])
    }

    /// Kills all servers, and starts them again with what their files say now.
    ///
    /// # Errors
    /// When they do not become ready.
    pub fn restart(&self) -> anyhow::Result<()> {
        let servers = || self.filers.iter().chain(&self.volumes).chain([&self.master]);
        servers().for_each(Server::kill);
        self.master.restart()?;
        self.master.await_answer("/cluster/healthz")?;
        for index in 0..self.volumes.len() {
            self.restart_volume_server(index)?;
        }
        (0..self.filers.len()).try_for_each(|index| self.restart_filer(index))
    }

    /// Starts a filer again after [`Server::kill`] and waits until it accepts files.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_filer(&self, index: usize) -> anyhow::Result<()> {
        self.filers[index].restart()?;
        await_filer(&self.filers[index])
    }

    /// Runs commands in `weed shell` and gives what they print.
    ///
    /// # Errors
    /// When the shell cannot be run or fails.
    pub fn shell(&self, commands: &[&str]) -> anyhow::Result<String> {
        let mut child = Command::new(tools::weed()?)
            .args(["shell", &format!("-master={}", self.master.address())])
            .arg(format!("-filer={}", self.filers[0].address()))
            .current_dir(self.directory())
            .env("HOME", self.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting weed shell")?;
        let script = commands.join("\n") + "\nexit\n";
        child.stdin.take().context("weed shell has no input")?.write_all(script.as_bytes())?;
        let output = child.wait_with_output()?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "weed shell failed ({}):\n{text}", output.status);
        Ok(text)
    }

    fn await_volume_server(&self, volume: &Server) -> anyhow::Result<()> {
        // Not by HTTP: it may ask for TLS.
        volume.await_that("an open port", || TcpStream::connect(volume.address()).ok().map(drop))?;
        let wanted = Value::from(volume.address());
        let known = || {
            let status: Value = serde_json::from_slice(&self.master.get("/dir/status").ok()?).ok()?;
            let mut nodes = Vec::new();
            for center in status["Topology"]["DataCenters"].as_array()? {
                for rack in center["Racks"].as_array()? {
                    nodes.extend(rack["DataNodes"].as_array()?);
                }
            }
            nodes.iter().any(|node| node["Url"] == wanted).then_some(())
        };
        eventually("the registration of a volume server", READY_TIMEOUT, known)
            .with_context(|| format!("log of {}:\n{}", volume.name, volume.log_tail()))
    }
}

/// One `weed` process, which may be killed and started again with the same address and data.
#[derive(Debug)]
pub struct Server {
    name: String,
    launch: Launch,
    lease: PortLease,
    args: Vec<String>,
    process: Mutex<Option<Process>>,
}

#[derive(Clone, Debug)]
struct Launch {
    program: PathBuf,
    directory: PathBuf,
    grace: Duration,
}

impl Launch {
    fn make(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }
}

impl Server {
    fn start(launch: &Launch, name: &str, lease: PortLease, args: Vec<String>) -> anyhow::Result<Server> {
        let server =
            Server { name: name.to_owned(), launch: launch.clone(), lease, args, process: Mutex::new(None) };
        server.restart()?;
        Ok(server)
    }

    /// `127.0.0.1:PORT` of its HTTP side.
    #[must_use]
    pub fn address(&self) -> String {
        self.lease.address()
    }

    /// Where its data is.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.launch.directory.join(&self.name)
    }

    /// The process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        crate::process::tail(&self.log())
    }

    /// SIGKILL. It stays down until restarted through the [`Cluster`].
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// SIGSTOP: it hangs, with its connections open, until it is [thawed](Self::thaw).
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.process().as_mut() {
            process.signal(signal);
        }
    }

    /// The body of a GET of `path` that is answered with 200.
    ///
    /// # Errors
    /// When it is not.
    pub fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let url = format!("http://{}{path}", self.address());
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).build();
        let mut answer = ureq::Agent::new_with_config(config).get(&url).call().context(url)?;
        Ok(answer.body_mut().with_config().limit(1 << 30).read_to_vec()?)
    }

    fn restart(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.launch.program);
        command.args(&self.args).current_dir(&self.launch.directory).env("HOME", &self.launch.directory);
        let mut process = self.process();
        anyhow::ensure!(process.is_none(), "{} runs already", self.name);
        *process = Some(Process::start(command, &self.log(), self.launch.grace, Signal::SIGKILL)?);
        Ok(())
    }

    fn await_answer(&self, path: &str) -> anyhow::Result<()> {
        self.await_that("an answer", || self.get(path).ok().map(drop))
    }

    fn await_that(&self, what: &str, mut condition: impl FnMut() -> Option<()>) -> anyhow::Result<()> {
        let mut ended = None;
        let result = eventually(&format!("{what} of weed {}", self.name), READY_TIMEOUT, || {
            if let Some(Err(error)) = self.process().as_mut().map(Process::ensure_running) {
                ended = Some(error);
                return Some(());
            }
            condition()
        });
        match ended {
            Some(error) => Err(error),
            None => result.with_context(|| format!("log of {}:\n{}", self.name, self.log_tail())),
        }
    }

    fn log(&self) -> PathBuf {
        self.launch.directory.join(format!("{}.log", self.name))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process().take());
        // weed serves gRPC to its neighbours on this host through a socket named after the port,
        // and leaves the socket there.
        let role = self.name.trim_end_matches(|digit: char| digit.is_ascii_digit());
        let _ = fs::remove_file(format!("/tmp/seaweedfs-{role}-grpc-{}.sock", self.lease.grpc()));
    }
}

/// An S3 gateway before `filer`: anonymous requests may do anything, and so may those signed with
/// [`S3::ACCESS_KEY`].
fn s3_gateway(launch: &Launch, filer: &Server) -> anyhow::Result<Server> {
    let lease = PortLease::take()?;
    let data = launch.make("s3")?;
    let actions = ["Admin", "Read", "List", "Tagging", "Write"];
    let credentials = json!([{ "accessKey": S3::ACCESS_KEY, "secretKey": S3::SECRET_KEY }]);
    let identities = json!({ "identities": [
        { "name": "anonymous", "actions": actions },
        { "name": "origin", "actions": actions, "credentials": credentials },
    ] });
    let config = data.join("identities.json");
    fs::write(&config, identities.to_string())?;
    let mut args = addresses("s3", &lease);
    args.extend([
        format!("-filer={}", filer.address()),
        format!("-config={}", config.display()),
        "-localSocket=s3/socket".into(),
        "-port.iceberg=0".into(),
        "-port.lance=0".into(),
    ]);
    let server = Server::start(launch, "s3", lease, args)?;
    // It answers before it has loaded the identities.
    server.await_that("a bucket", || S3::new(&server.address()).make_bucket("ready").ok())?;
    Ok(server)
}

fn addresses(role: &str, lease: &PortLease) -> Vec<String> {
    vec![
        role.to_owned(),
        "-ip=127.0.0.1".into(),
        "-ip.bind=127.0.0.1".into(),
        format!("-port={}", lease.http()),
        format!("-port.grpc={}", lease.grpc()),
    ]
}

/// A filer answers before it can store anything; a file that it accepts proves the whole way.
fn await_filer(filer: &Server) -> anyhow::Result<()> {
    const PROBE: &str = "/.ready";
    filer.await_answer("/healthz")?;
    let client = Filer::new(&filer.address());
    filer.await_that("the first upload", || client.put(PROBE, b"ready?", "").ok())?;
    client.delete(PROBE)
}
