//! A real SeaweedFS in a workplace, an engine beside its volume server, and mounts of it: what
//! `run` shows and `bench` measures.

use std::fs;
use std::path::Path;

use ::tests::{Cluster, Mount, MountBuilder};
use anyhow::{Context, Result};

use crate::interrupt;
use crate::workplace::Workplace;

/// What either mount may cache unless it is said otherwise, MiB.
pub(crate) const CACHE_MIB: u64 = 2048;

/// A cluster and the workplace that it runs in. Dropping it ends and removes everything.
pub(crate) struct Stage {
    // Before the workplace, so that it is dropped before the directory goes.
    pub(crate) cluster: Cluster,
    workplace: Workplace,
}

impl Stage {
    /// Starts a cluster in `target/NAME` and waits until it is ready.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let mut workplace = Workplace::open(name)?;
        // Mounts keep logs and caches in temporary directories; in the workplace the next run
        // finds them after a crash.
        tempfile::env::override_temp_dir(&workplace.make("tmp")?).ok();
        let directory = workplace.make("cluster")?;
        isolate(&directory)?;
        eprintln!("starting SeaweedFS");
        let builder = Cluster::builder().directory(&directory).volume_size_limit_mb(4096);
        let cluster = builder.start().context("cannot start SeaweedFS")?;
        for server in cluster.volume_servers().iter().chain(cluster.filers()).chain([cluster.master()]) {
            server.pid().map_or(Ok(()), |pid| workplace.owns(pid))?;
        }
        for engine in cluster.engines() {
            workplace.owns(engine.pid())?;
        }
        interrupt::check()?;
        Ok(Self { cluster, workplace })
    }

    /// Where everything of the stage is kept.
    pub(crate) fn directory(&self) -> &Path {
        self.workplace.directory()
    }

    /// Mounts a directory of the filer with `interceptor mount`, or another `build` of it, with a
    /// cache of `cache_mib` MiB, the transport `transport` and further `options`.
    pub(crate) fn interceptor(
        &mut self,
        build: Option<&Path>,
        path: &str,
        cache_mib: u64,
        transport: &str,
        options: &[&str],
    ) -> Result<Mount> {
        let security = self.cluster.directory().join("security.toml");
        let mount = Mount::interceptor(&self.cluster.filer_addresses()).security(&security);
        let mount = mount.engines(&self.cluster, transport).filer_path(path);
        let mount = mount.arg("--cache-size").arg(format!("{cache_mib}MiB")).args(options);
        let is_said = options.iter().any(|option| option.starts_with("--cache-prefault"));
        match build {
            // So that both builds can be mounted at once.
            Some(program) => self.mount("other-mount", mount.program(program)),
            // Mounts of tests do without.
            None if !is_said => self.mount("mount", mount.arg("--cache-prefault=auto")),
            None => self.mount("mount", mount),
        }
    }

    /// Mounts a directory of the filer with `weed mount`, which may cache so many MiB, and further
    /// `options`.
    pub(crate) fn weed(&mut self, path: &str, cache_mib: u64, options: &[&str]) -> Result<Mount> {
        let mount = Mount::weed(&self.cluster).filer_path(path);
        self.mount("mount", mount.arg(format!("-cacheCapacityMB={cache_mib}")).args(options))
    }

    fn mount(&mut self, name: &str, mount: MountBuilder) -> Result<Mount> {
        let mount = mount.mount_point(&self.workplace.make(name)?).start()?;
        self.workplace.owns(mount.watcher())?;
        interrupt::check()?;
        Ok(mount)
    }

    /// Ends and removes everything. Mounts must be gone.
    pub(crate) fn close(self) -> Result<()> {
        let Self { cluster, workplace } = self;
        drop(cluster);
        workplace.close()
    }
}

/// Puts a filer configuration where `weed` looks first: one of the host might name a real metadata
/// store.
fn isolate(directory: &Path) -> Result<()> {
    let store = "[leveldb2]\nenabled = true\ndir = \"./filer0/store\"\n";
    fs::write(directory.join("filer.toml"), store).context("cannot configure the filer")
}
