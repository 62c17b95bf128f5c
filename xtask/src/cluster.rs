//! A SeaweedFS of one process (master, volume server, filer) on free loopback ports, with its data in a workplace.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;

use crate::interrupt::{self, TICK};
use crate::upload::Uploader;
use crate::workplace::Workplace;

/// How long the servers may take until a file can be written.
const START: Duration = Duration::from_secs(60);

/// A running cluster. The workplace that it was started in ends it.
pub(crate) struct Cluster {
    /// `host:port` of the filer's HTTP interface.
    pub(crate) filer: String,
    /// Where the volume server keeps its data.
    pub(crate) data: PathBuf,
}

impl Cluster {
    /// Starts the servers and waits until a file can be written.
    pub(crate) fn start(place: &mut Workplace, weed: &Path) -> Result<Self> {
        let data = place.make("volumes")?;
        let master_data = place.make("master")?;
        isolate(place.directory())?;
        let [master, volume, filer] = free_ports()?;
        let mut command = Command::new(weed);
        command
            .arg("server")
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=20", "-master.volumeSizeLimitMB=4096"])
            .args(["-filer", "-s3=false"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-master.dir={}", master_data.display()))
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"));
        place.owns_files(sockets([("master", master), ("volume", volume), ("filer", filer)]))?;
        let mut child = place.start("cluster", &mut command)?;
        let cluster = Self { filer: format!("127.0.0.1:{filer}"), data };
        cluster.wait_until_ready(&mut child, &place.log("cluster"))?;
        Ok(cluster)
    }

    fn wait_until_ready(&self, child: &mut Child, log: &Path) -> Result<()> {
        let started = Instant::now();
        let uploader = Uploader::new(&self.filer);
        loop {
            let failure = match uploader.put("/.ready", 2, &b"ok"[..]) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            interrupt::check()?;
            if let Some(status) = child.try_wait()? {
                bail!("weed server ended ({status}):\n{}", tail(log));
            }
            if started.elapsed() > START {
                bail!("weed server is not ready after {} s ({failure:#}):\n{}", START.as_secs(), tail(log));
            }
            thread::sleep(TICK);
        }
    }
}

/// Puts configuration files where `weed` looks first, so that none of the host's own (which may name a real metadata store or real
/// keys) is used.
fn isolate(directory: &Path) -> Result<()> {
    let files = [
        ("filer.toml", "[leveldb2]\nenabled = true\ndir = \"./filer\"\n"),
        ("security.toml", ""),
        ("master.toml", ""),
        ("notification.toml", ""),
    ];
    for (name, content) in files {
        fs::write(directory.join(name), content).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// The local sockets that the servers make, under names that are not to be chosen, and leave.
fn sockets(servers: [(&str, u16); 3]) -> impl Iterator<Item = PathBuf> {
    servers
        .into_iter()
        .map(|(server, port)| format!("/tmp/seaweedfs-{server}-grpc-{}.sock", port + 10_000).into())
}

/// Ports below the range that the kernel gives to outgoing connections, whose gRPC twin (10,000 above) is free as well.
fn free_ports() -> Result<[u16; 3]> {
    let mut dice = rand::rng();
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = Vec::new();
    for _ in 0..1000 {
        let port = dice.random_range(10_000..22_000);
        if !ports.contains(&port) && free(port) && free(port + 10_000) {
            ports.push(port);
        }
        if let [master, volume, filer] = ports[..] {
            return Ok([master, volume, filer]);
        }
    }
    bail!("there are no free ports between 10000 and 32000")
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
