//! What the driver's mount service does with the program `weed`, step by step: the same arguments
//! and variables, waits and signals.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::mount::interceptor_program;
use tests::patience;
use tests::process::Process;
use tests::tools;

/// How long the service waits for a mount point.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after SIGTERM it kills a process.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What it leaves to a file system between the end of the process and the unmounting.
const UNMOUNT_DELAY: Duration = Duration::from_millis(100);

/// A directory of a host, with the program `weed` that stands for SeaweedFS's.
pub(crate) struct MountService {
    home: TempDir,
    filers: String,
    environment: Vec<(&'static str, String)>,
}

/// A volume that is mounted.
pub(crate) struct MountedVolume {
    pub(crate) path: PathBuf,
    pub(crate) socket: PathBuf,
    cache: PathBuf,
    pub(crate) process: Process,
}

impl MountService {
    pub(crate) fn new(filers: &str) -> Self {
        let home = tempfile::Builder::new().prefix("interceptor-csi-").tempdir().unwrap();
        // An empty one keeps the host's own settings out.
        fs::write(home.path().join("security.toml"), "").unwrap();
        symlink(interceptor_program().unwrap(), home.path().join("weed")).unwrap();
        let environment = vec![
            ("HOME", home.path().display().to_string()),
            ("INTERCEPTOR_WEED", tools::weed().unwrap().display().to_string()),
            ("INTERCEPTOR_CACHE_SIZE", "64MiB".to_owned()),
            ("INTERCEPTOR_CACHE_PREFAULT", "off".to_owned()),
        ];
        Self { home, filers: filers.to_owned(), environment }
    }

    /// Sets a variable for the programs.
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    /// The program `weed` with these arguments.
    pub(crate) fn weed(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(self.home.path().join("weed"));
        command.args(arguments).current_dir(self.home.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the entrypoint of the image, up to the driver's own program, which is not here.
    pub(crate) fn enter_container(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/kubernetes/entrypoint.sh");
        let mut command = Command::new("sh");
        command.arg(script).env("KUBELET_PLUGINS", self.home.path().join("staging"));
        assert_eq!(command.output().unwrap().status.code(), Some(127));
    }

    /// The path at which a volume is staged.
    pub(crate) fn staging_path(&self, volume: &str) -> PathBuf {
        self.home.path().join("staging").join(volume)
    }

    /// The log of a volume's processes.
    pub(crate) fn log(&self, volume: &str) -> String {
        fs::read_to_string(self.home.path().join(format!("{volume}.log"))).unwrap_or_default()
    }

    /// Mounts the filer's directory `/volumes/VOLUME`, with the driver's arguments and `more`.
    pub(crate) fn mount(
        &self,
        volume: &str,
        is_read_only: bool,
        more: &[&str],
    ) -> anyhow::Result<MountedVolume> {
        let path = self.staging_path(volume);
        let (cache, socket) = (
            self.home.path().join(format!("cache-{volume}")),
            self.home.path().join(format!("{volume}.sock")),
        );
        ensure_clean(&path)?;
        fs::create_dir_all(&cache)?;
        let mut arguments = vec![
            "-logtostderr=true".to_owned(),
            "mount".to_owned(),
            "-dirAutoCreate=true".to_owned(),
            "-umask=000".to_owned(),
            format!("-dir={}", path.display()),
            format!("-localSocket={}", socket.display()),
            format!("-cacheDir={}", cache.display()),
        ];
        arguments.extend(is_read_only.then(|| "-readOnly".to_owned()));
        arguments.extend([
            // One for all, as each takes several volumes of the cluster.
            "-collection=shared".to_owned(),
            format!("-filer={}", self.filers),
            format!("-filer.path=/volumes/{volume}"),
            "-cacheCapacityMB=0".to_owned(),
            "-cacheMetaTtlSec=60".to_owned(),
            "-concurrentReaders=128".to_owned(),
            "-concurrentWriters=128".to_owned(),
        ]);
        arguments.extend(more.iter().map(|&option| option.to_owned()));
        let log = self.home.path().join(format!("{volume}.log"));
        let process = Process::start(self.weed(&arguments), &log, STOP_TIMEOUT, Signal::SIGTERM)?;
        let mut mounted = MountedVolume { path, socket, cache, process };
        let deadline = Instant::now() + patience(MOUNT_TIMEOUT);
        while !is_mount_point(&mounted.path)? {
            if Instant::now() >= deadline {
                mounted.process.terminate();
                anyhow::bail!("timeout waiting for mount:\n{}", mounted.process.log_tail());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(mounted)
    }
}

impl MountedVolume {
    /// Ends the process as the service does. Returns its status; an error if it has to be killed.
    pub(crate) fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait(STOP_TIMEOUT)?;
        self.clean_up()?;
        Ok(status)
    }

    /// What the service does when the process has ended.
    pub(crate) fn clean_up(&mut self) -> io::Result<()> {
        thread::sleep(UNMOUNT_DELAY);
        let _ = unmount(&self.path);
        fs::remove_dir_all(&self.cache)
    }

    /// Waits for the end of the process by itself, and cleans up after it.
    pub(crate) fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.process.wait(STOP_TIMEOUT)?;
        self.clean_up()?;
        Ok(status)
    }

    /// `SeaweedMount.Configure` with a quota, by the socket. Returns the status of gRPC.
    pub(crate) fn configure(&self, quota: u8) -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let call = async {
            let stream = tokio::net::UnixStream::connect(&self.socket).await?;
            let (mut client, connection) = h2::client::handshake(stream).await?;
            let connection = tokio::spawn(connection);
            let request = Request::post("http://localhost/messaging_pb.SeaweedMount/Configure")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())?;
            let (response, mut body) = client.send_request(request, false)?;
            // A frame of gRPC: two bytes that are not compressed, a number as field 1.
            body.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, quota]), true)?;
            let response = response.await?;
            let status = |headers: &http::HeaderMap| {
                headers.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned)
            };
            let early = status(response.headers());
            let mut body = response.into_body();
            while let Some(part) = body.data().await {
                body.flow_control().release_capacity(part?.len())?;
            }
            let late = body.trailers().await?.as_ref().and_then(status);
            connection.abort();
            late.or(early).context("no status")
        };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), call).await })?
    }
}

impl Drop for MountedVolume {
    fn drop(&mut self) {
        self.process.terminate();
        while unmount(&self.path).is_ok() {}
    }
}

/// As before each mount: unmounts what is there, once.
fn ensure_clean(path: &Path) -> anyhow::Result<()> {
    let is_mounted = match is_mount_point(path) {
        Ok(is_mounted) => is_mounted,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            ensure!(error.raw_os_error() == Some(libc::ENOTCONN), "{error}");
            true
        }
    };
    if is_mounted {
        unmount(path).context("unmounting what was there")?;
    }
    Ok(fs::create_dir_all(path)?)
}

fn unmount(path: &Path) -> nix::Result<()> {
    umount2(path, MntFlags::empty())
}

/// Whether the device of `path` is another one than that of its parent.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// The types of the file systems that are mounted at `path`.
pub(crate) fn mounted_types(path: &Path) -> Vec<String> {
    let table = io::read_to_string(File::open("/proc/self/mountinfo").unwrap()).unwrap();
    let at_path = table.lines().filter(|line| line.split(' ').nth(4) == path.to_str());
    let kind = |line: &str| line.split(" - ").nth(1)?.split(' ').next().map(str::to_owned);
    at_path.filter_map(kind).collect()
}
