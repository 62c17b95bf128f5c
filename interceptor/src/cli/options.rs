//! The options of `interceptor mount`: their values, defaults, and limits.
//!
//! Names and meanings that users of `weed mount` know are kept, in the dashed spelling.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::builder::RangedI64ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, ValueEnum, ValueHint, value_parser};
use daemon::address::StatusAddress;
use daemon::logs::LogFormat;
use daemon::size::ByteSize;
use daemon::{duration, memory};

use super::host;
use crate::fetch::{ENGINE_PORT, EngineConfig};
use crate::seaweed::address::{ParseAddressError, ServerAddress};
use crate::seaweed::permissions::{IdMap, PermissionBits};
use crate::seaweed::security::Security;
use crate::telemetry::Status;
use crate::telemetry::access::{ApiSecrets, Token};
use crate::telemetry::otlp::{OtlpAddress, OtlpExporter};
use crate::telemetry::tls::StatusCertificate;
use crate::vital::contained_task;

/// Below this a few readers would evict each other's chunks before they are read.
const MIN_CACHE_SIZE: ByteSize = ByteSize(16 << 20);

/// Below this a disk would hold no more than memory does.
pub(super) const MIN_DISK_CACHE_SIZE: ByteSize = ByteSize(64 << 20);

/// For how long reads may be tried again: with less, one packet that is sent again would fail a
/// read; with more, programs would hang for as long as an operator looks for the cause.
const RETRY_TIMES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// From when on a read may count as slow: less than a millisecond would be a log of all fetches.
const SLOW_READ_TIMES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// How often a command that watches may look.
pub(super) const POLL_INTERVAL_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// Default size of the cache, if that is not more than half of the memory.
const DEFAULT_CACHE_SIZE: ByteSize = ByteSize(1 << 30);

/// How to log; shared by all commands that run for long.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LogOptions {
    /// error, warn, info, debug, trace or off; or a filter such as `info,interceptor::fetch=debug`
    /// [default: RUST_LOG, else info]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,

    /// Lines for people, or JSON for collectors; on standard error
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub(super) log_format: LogFormat,

    /// Log reads that take longer than this, with what they waited for; the status API has the
    /// last ones
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = |text: &str| duration::within(text, SLOW_READ_TIMES))]
    pub(super) slow_read: Duration,

    /// Send metrics and slow reads to this OpenTelemetry collector, too, every 15 seconds (OTLP
    /// over gRPC)
    #[arg(long, value_name = "http://HOST:PORT", value_parser = OtlpAddress::from_str)]
    pub(super) otlp: Option<OtlpAddress>,
}

impl LogOptions {
    /// Has slow reads noted, and what `status` knows sent to the collector, if there is one.
    pub(super) fn begin_reports(&self, status: &Arc<Status>) -> anyhow::Result<()> {
        status.metrics().slow_reads().set_threshold(self.slow_read);
        if let Some(address) = &self.otlp {
            let exporter = OtlpExporter::new(address.clone(), status.clone()).context("--otlp")?;
            tokio::spawn(contained_task(exporter.run()));
        }
        Ok(())
    }
}

/// Where options come from that are not typed.
#[derive(Debug, Clone, Args)]
pub(super) struct ConfigurationOptions {
    /// TOML file with options under their long names. Files in FILE.d go before it, variables as
    /// INTERCEPTOR_CACHE_SIZE before both, and what is typed before all [default:
    /// INTERCEPTOR_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

/// Mounts a directory tree of a filer, read-only, and serves reads until it is unmounted or
/// interrupted.
#[derive(Debug, Clone, Args)]
pub(super) struct MountOptions {
    /// An existing directory to mount on
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,

    /// Filers of one cluster; while one does not answer, the next is asked
    #[arg(long, value_name = "HOST:PORT[,…]", value_parser = Filers::from_str)]
    pub(super) filer: Option<Filers>,

    /// The filer's directory to mount
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = filer_path)]
    pub(super) filer_path: String,

    /// How it is configured.
    #[command(flatten)]
    pub(super) configuration: ConfigurationOptions,

    /// Have this program with these options take over a mount that is there, while programs go on
    /// using it. Returns when the mount answers. What the kernel was told when it was mounted
    /// cannot change: --filer-path, --allow-other, --noexec, --nosymfollow, --fsname, owners and
    /// permissions, the cluster
    #[arg(long)]
    pub(super) restart: bool,

    /// Where the status API listens, `none` for nowhere; port 0 takes a free port, and so does the
    /// default if another program has its port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9650", value_parser = StatusAddress::from_str)]
    pub(super) status_addr: StatusAddress,

    /// Whether that address is the default, not one that was asked for.
    #[arg(skip)]
    pub(super) is_default_status_addr: bool,

    /// Who may read the status API.
    #[command(flatten)]
    pub(super) status_access: StatusAccessOptions,

    /// How the mount behaves.
    #[command(flatten)]
    pub(super) mount: MountBehaviour,

    /// How content is fetched.
    #[command(flatten)]
    pub(super) fetch: FetchOptions,

    /// How to log.
    #[command(flatten)]
    pub(super) log: LogOptions,
}

/// Who may read the status API, and how it is reached from other hosts.
#[derive(Debug, Clone, Args)]
pub(super) struct StatusAccessOptions {
    /// Let only clients with the token in this file read the status API, except for /healthz and
    /// /readyz
    #[arg(long, value_name = "FILE")]
    status_token_file: Option<PathBuf>,

    /// Have clients of other hosts reach the status API by TLS, with this certificate and what
    /// leads from it to an authority (PEM). Clients on this host may use either
    #[arg(long, value_name = "FILE")]
    status_tls_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE")]
    status_tls_key: Option<PathBuf>,
}

impl StatusAccessOptions {
    /// Reads token, certificate and key.
    pub(super) fn load(&self) -> anyhow::Result<ApiSecrets> {
        let token = self.status_token_file.as_deref().map(Token::read).transpose()?;
        let certificate = match (&self.status_tls_cert, &self.status_tls_key) {
            (Some(certificate), Some(key)) => Some(StatusCertificate::read(certificate, key)?),
            _ => None,
        };
        Ok(ApiSecrets { token, certificate })
    }

    /// The file with the token.
    pub(super) fn token_file(&self) -> Option<&Path> {
        self.status_token_file.as_deref()
    }

    /// Whether the options fit together.
    pub(super) fn check(&self) -> Result<(), OptionError> {
        match (&self.status_tls_cert, &self.status_tls_key) {
            (Some(_), None) => Err(OptionError::NoStatusKey),
            (None, Some(_)) => Err(OptionError::NoStatusCertificate),
            _ => Ok(()),
        }
    }

    fn paths(&mut self) -> [&mut Option<PathBuf>; 3] {
        [&mut self.status_token_file, &mut self.status_tls_cert, &mut self.status_tls_key]
    }
}

/// What applications see.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mount")]
pub(super) struct MountBehaviour {
    /// Let other users than the mounting one use the mount [default: true for root, else false;
    /// others than root need `user_allow_other` in /etc/fuse.conf]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(super) allow_other: Option<bool>,

    /// Mount over a directory that is not empty
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "false", hide_default_value = true)]
    pub(super) nonempty: bool,

    /// Show /topics and /etc, where SeaweedFS keeps things for itself
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "false", hide_default_value = true)]
    pub(super) include_system_entries: bool,

    /// User ids here that stand for user ids of the filer
    #[arg(long, value_name = "LOCAL:FILER[,…]", value_parser = IdMap::from_str)]
    pub(super) map_uid: Option<IdMap>,

    /// Group ids here that stand for group ids of the filer
    #[arg(long, value_name = "LOCAL:FILER[,…]", value_parser = IdMap::from_str)]
    pub(super) map_gid: Option<IdMap>,

    /// Show files as this user's, except those of users in --map-uid [default: the filer's users]
    #[arg(long, value_name = "ID", value_parser = owner_id())]
    pub(super) uid: Option<u32>,

    /// Show files as this group's, except those of groups in --map-gid [default: the filer's
    /// groups]
    #[arg(long, value_name = "ID", value_parser = owner_id())]
    pub(super) gid: Option<u32>,

    /// The permissions of files, in octal, like 0644 [default: the filer's]
    #[arg(long, value_name = "MODE", value_parser = PermissionBits::from_str)]
    pub(super) file_mode: Option<PermissionBits>,

    /// The permissions of directories, in octal, like 0755 [default: the filer's]
    #[arg(long, value_name = "MODE", value_parser = PermissionBits::from_str)]
    pub(super) dir_mode: Option<PermissionBits>,

    /// Permissions that no file and no directory has, in octal, like 027
    #[arg(long, value_name = "MODE", default_value = "0", hide_default_value = true, value_parser = PermissionBits::from_str)]
    pub(super) umask: PermissionBits,

    /// How far the kernel reads ahead of a sequential reader, in KiB; 0 for not at all
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub(super) readahead_kb: u32,

    /// Let the kernel read hot files by itself; without it the kernel asks the daemon for each
    /// read that is not in its page cache. --no-passthrough turns it off [default: true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "true", hide_default_value = true)]
    pub(super) passthrough: bool,

    /// Let the threads that answer the kernel go to the CPU that a lone reader is bound to;
    /// without it the kernel chooses their CPUs. --no-placement turns it off [default: true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "true", hide_default_value = true)]
    pub(super) placement: bool,

    /// Keep the CPUs from deep sleep while a program makes small requests one after another;
    /// without it each of them waits for CPUs to wake up. --no-keep-awake turns it off [default:
    /// true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "true", hide_default_value = true)]
    pub(super) keep_awake: bool,

    /// Watch with eBPF what the kernel reads; without it the daemon does not know what is hot in
    /// the page cache. --no-ebpf turns it off [default: true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "true", hide_default_value = true)]
    pub(super) ebpf: bool,

    /// Threads that answer the kernel [default: one for each CPU, from 2 to 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: Option<u16>,

    /// Let no program be run from the mount. Takes root
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "false", hide_default_value = true)]
    pub(super) noexec: bool,

    /// Let no symbolic link of the mount be followed. Takes root and Linux 5.10
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "false", hide_default_value = true)]
    pub(super) nosymfollow: bool,

    /// The source that mount(8) and df(1) show [default: interceptor:FILER/PATH]
    #[arg(long, value_name = "NAME")]
    pub(super) fsname: Option<String>,
}

/// Ids of users and groups: all but -1, which stands for none.
fn owner_id() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(..i64::from(u32::MAX))
}

/// Where bytes come from and where they are kept.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Reading")]
pub(super) struct FetchOptions {
    /// Memory for chunks of files [default: 1GiB, or half of the memory if that is less]
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::from_str)]
    pub(super) cache_size: Option<ByteSize>,

    /// Accept a --cache-size above 80 % of the memory
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "false", hide_default_value = true)]
    pub(super) force: bool,

    /// Touch the cache's memory in the background before it is needed; auto: where the kernel is
    /// slow to give it, as in virtual machines that return free memory to their host
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) cache_prefault: CachePrefault,

    /// Keep what is read again on a disk of this host, too: in a directory of its own below this
    /// one, where restarts and other mounts of the cluster find it
    #[arg(long, value_name = "DIR")]
    pub(super) disk_cache: Option<PathBuf>,

    /// How much of that disk may be taken [default: a tenth of it]
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::from_str)]
    pub(super) disk_cache_size: Option<ByteSize>,

    /// Where volume servers and engines are, and how they are reached.
    #[command(flatten)]
    pub(super) servers: ServerOptions,

    /// Prefer replicas in this data center
    #[arg(long, value_name = "NAME")]
    pub(super) data_center: Option<String>,

    /// How many requests one volume server is given at the same time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) concurrent_readers: u16,

    /// How long a read is tried again before it fails
    #[arg(long, value_name = "TIME", default_value = "6s", value_parser = |text: &str| duration::within(text, RETRY_TIMES))]
    pub(super) read_retry_time: Duration,

    /// Take keys and certificates from this security.toml, not from the first one in .,
    /// ~/.seaweedfs, /usr/local/etc/seaweedfs and /etc/seaweedfs
    #[arg(long, value_name = "FILE")]
    pub(super) security: Option<PathBuf>,
}

/// How volume servers are reached, and the engines beside them.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerOptions {
    /// How chunks are brought, the best first; may be repeated. Whatever is said, http is what
    /// remains in the end. auto: local, verbs, tcp, http
    #[arg(long, value_name = "TRANSPORT[,…]", value_delimiter = ',', default_value = "auto")]
    pub(super) transport: Vec<TransportChoice>,

    /// The port at which an rdma-engine is looked for on the host of each volume server
    #[arg(long, value_name = "PORT", default_value_t = ENGINE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) rdma_port: u16,

    /// An rdma-engine that is elsewhere: the volume server as the cluster calls it, and its
    /// engine; may be repeated
    #[arg(long, value_name = "HOST:PORT=HOST:PORT", value_delimiter = ',', value_parser = EngineLocation::from_str)]
    pub(super) engine: Vec<EngineLocation>,

    /// How volume servers are reached: under the address they have in the cluster, under their
    /// public one, or through the filer
    #[arg(long, value_name = "ACCESS", default_value = "direct")]
    pub(super) volume_server_access: VolumeServerAccess,
}

/// Whether memory is touched before it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CachePrefault {
    /// While that proves to be slow.
    Auto,
    /// All of the cache.
    On,
    /// Nothing.
    Off,
}

/// Ways of bringing chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportChoice {
    /// The best that works.
    Auto,
    /// The engine beside the volume server, by RDMA.
    Verbs,
    /// The volume server's files, where it is on this host.
    Local,
    /// The engine beside the volume server, over TCP.
    Tcp,
    /// The volume servers' HTTP interface.
    Http,
}

/// Where the engine of a volume server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EngineLocation {
    /// `host:port` of the volume server.
    pub(super) server: String,
    /// `host:port` of its engine.
    pub(super) engine: String,
}

impl FromStr for EngineLocation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_address = |text: &str| {
            let is_host = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
            text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok())
        };
        match text.split_once('=') {
            Some((server, engine)) if is_address(server) && is_address(engine) => {
                Ok(Self { server: server.to_owned(), engine: engine.to_owned() })
            }
            _ => Err("expected VOLUMEHOST:PORT=ENGINEHOST:PORT"),
        }
    }
}

/// Ways of reaching volume servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum VolumeServerAccess {
    /// Under the address that the master knows.
    #[value(name = "direct")]
    Direct,
    /// Under the address that the volume server calls public.
    #[value(name = "publicUrl", alias = "public-url")]
    PublicUrl,
    /// Through the filer, where volume servers cannot be reached.
    #[value(name = "filerProxy", alias = "filer-proxy")]
    FilerProxy,
}

/// A list of filers, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filers(pub(super) Vec<ServerAddress>);

impl FromStr for Filers {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ServerAddress::parse_list(text).map(Self)
    }
}

/// Options that are well-formed each, but not together or not on this host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionError {
    /// No filer is named.
    #[error("--filer HOST:PORT is needed, on the command line or in --config FILE")]
    NoFiler,
    /// Useless.
    #[error("--cache-size {0} is too small: the minimum is {MIN_CACHE_SIZE}")]
    SmallCache(ByteSize),
    /// Impossible.
    #[error("--cache-size {size} is more than all the memory that this process may use ({memory})")]
    ImpossibleCache {
        /// What was asked for.
        size: ByteSize,
        /// What there is.
        memory: ByteSize,
    },
    /// Dangerous.
    #[error(
        "--cache-size {size} is more than 80 % of the memory that this process may use ({memory}); --force accepts it"
    )]
    LargeCache {
        /// What was asked for.
        size: ByteSize,
        /// What there is.
        memory: ByteSize,
    },
    /// Useless.
    #[error("--disk-cache-size {0} is too small: the minimum is {MIN_DISK_CACHE_SIZE}")]
    SmallDiskCache(ByteSize),
    /// What is read would go past the cache.
    #[error("--read-cache off leaves no use for --filer: leave one of them out")]
    UselessFiler,
    /// Nobody would tell what has changed.
    #[error("--disk-cache takes --filer: only a cluster tells what has not changed since")]
    DiskCacheWithoutFiler,
    /// A certificate that nobody can prove to have.
    #[error("--status-tls-cert needs --status-tls-key FILE as well")]
    NoStatusKey,
    /// A key of nothing.
    #[error("--status-tls-key needs --status-tls-cert FILE as well")]
    NoStatusCertificate,
    /// A size of nothing.
    #[error("--disk-cache-size is of use only with --disk-cache DIR")]
    NoDiskCache,
}

impl OptionError {
    /// The option that has the value.
    pub(super) fn option(&self) -> &'static str {
        match self {
            Self::NoFiler => "filer",
            Self::SmallCache(_) | Self::ImpossibleCache { .. } | Self::LargeCache { .. } => "cache-size",
            Self::UselessFiler => "read-cache",
            Self::DiskCacheWithoutFiler => "disk-cache",
            Self::NoStatusKey => "status-tls-cert",
            Self::NoStatusCertificate => "status-tls-key",
            Self::SmallDiskCache(_) | Self::NoDiskCache => "disk-cache-size",
        }
    }
}

impl FetchOptions {
    /// Bytes of memory that the cache may take.
    pub(super) fn cache_size(&self) -> Result<ByteSize, OptionError> {
        cache_size(self.cache_size, self.force, memory::limit().map(ByteSize))
    }

    /// Whether the options of the disk cache fit together.
    pub(super) fn check_disk_cache(&self) -> Result<(), OptionError> {
        match self.disk_cache_size {
            Some(_) if self.disk_cache.is_none() => Err(OptionError::NoDiskCache),
            Some(size) if size < MIN_DISK_CACHE_SIZE => Err(OptionError::SmallDiskCache(size)),
            _ => Ok(()),
        }
    }
}

impl ServerOptions {
    /// The engines that may be asked. On the engine's host no transport is faster than reading its
    /// file, and elsewhere that fails at once; so `auto` begins with it. Where the cluster's HTTP
    /// is encrypted, `auto` leaves out transports that send plain text to another host: RDMA, and
    /// TCP unless it is under TLS.
    pub(super) fn engines(&self, security: &Security) -> EngineConfig {
        use rdma_engine::protocol::Transport as Carrier;
        let (is_encrypted, tls) = (security.https_tls().is_some(), security.grpc_tls());
        // What is named behind http would never be asked.
        let named = self.transport.iter().take_while(|&&transport| transport != TransportChoice::Http);
        let transports = named.flat_map(|transport| match transport {
            TransportChoice::Auto if is_encrypted && tls.is_some() => vec![Carrier::Local, Carrier::Tcp],
            TransportChoice::Auto if is_encrypted => vec![Carrier::Local],
            TransportChoice::Auto => vec![Carrier::Local, Carrier::Verbs, Carrier::Tcp],
            TransportChoice::Verbs => vec![Carrier::Verbs],
            TransportChoice::Local => vec![Carrier::Local],
            TransportChoice::Tcp => vec![Carrier::Tcp],
            TransportChoice::Http => Vec::new(),
        });
        let addresses = self.engine.iter().map(|at| (at.server.clone(), at.engine.clone())).collect();
        let transports = transports.collect();
        let proof_key = security.proof_key();
        EngineConfig { transports, port: self.rdma_port, addresses, memory: None, tls, proof_key }
    }
}

impl MountOptions {
    /// Makes the paths of files independent of the working directory.
    pub(super) fn make_paths_absolute(&mut self) -> std::io::Result<()> {
        let paths = [&mut self.fetch.disk_cache, &mut self.fetch.security];
        for path in paths.into_iter().chain(self.status_access.paths()).flatten() {
            *path = std::path::absolute(&path)?;
        }
        Ok(())
    }

    /// The filers to ask.
    pub(super) fn filers(&self) -> Result<Vec<ServerAddress>, OptionError> {
        self.filer.clone().map(|Filers(addresses)| addresses).ok_or(OptionError::NoFiler)
    }

    /// See [`FetchOptions::cache_size`].
    pub(super) fn cache_size(&self) -> Result<ByteSize, OptionError> {
        self.fetch.cache_size()
    }

    /// Whether other users may use the mount.
    pub(super) fn allow_other(&self) -> bool {
        self.mount.allow_other.unwrap_or_else(host::is_root)
    }

    /// Threads that answer the kernel.
    pub(super) fn threads(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16);
        self.mount.threads.map_or_else(cpus, usize::from)
    }
}

fn cache_size(
    asked: Option<ByteSize>,
    force: bool,
    memory: Option<ByteSize>,
) -> Result<ByteSize, OptionError> {
    let Some(size) = asked else {
        let half = memory.map_or(DEFAULT_CACHE_SIZE, |memory| ByteSize(memory.0 / 2));
        return Ok(DEFAULT_CACHE_SIZE.min(half).max(MIN_CACHE_SIZE));
    };
    match memory {
        _ if size < MIN_CACHE_SIZE => Err(OptionError::SmallCache(size)),
        Some(memory) if size > memory => Err(OptionError::ImpossibleCache { size, memory }),
        Some(memory) if !force && size.0 > memory.0 / 5 * 4 => Err(OptionError::LargeCache { size, memory }),
        _ => Ok(size),
    }
}

pub(super) fn filer_path(text: &str) -> Result<String, &'static str> {
    if !text.starts_with('/') {
        return Err("expected an absolute path, such as /buckets/data");
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return Err("expected a path without . and ..");
    }
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
    Ok(format!("/{}", parts.join("/")))
}

/// Options that are on unless `--NAME=false` or, for short, `--no-NAME` turns them off.
pub(super) const SWITCHES: [&str; 4] = ["passthrough", "placement", "keep-awake", "ebpf"];

/// The switch that `name` negates: `ebpf` for `no-ebpf`.
pub(super) fn negated_switch(name: &str) -> Option<&str> {
    name.strip_prefix("no-").filter(|name| SWITCHES.contains(name))
}

/// The argument that sets a switch by its own name: `--ebpf=false` for `--no-ebpf` and
/// `--no-ebpf=true`. Other arguments stay as they are.
fn without_negation(argument: OsString) -> OsString {
    let rewritten = argument.to_str().and_then(|text| {
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        let name = negated_switch(name.strip_prefix("--")?)?;
        let value = match value {
            "true" => "false",
            "false" => "true",
            wrong => wrong,
        };
        Some(format!("--{name}={value}").into())
    });
    rewritten.unwrap_or(argument)
}

/// The same for a whole command line, program and command in front. What follows `--` are paths.
pub(super) fn without_negations(arguments: &[OsString]) -> Vec<OsString> {
    let has_switches = arguments.get(1).is_some_and(|command| command == "mount" || command == "attach");
    let mut is_option = has_switches;
    let rewritten = arguments.iter().cloned().map(|argument| {
        is_option &= argument != "--";
        if is_option { without_negation(argument) } else { argument }
    });
    rewritten.collect()
}

/// Each option of `interceptor mount` in effect under its long name. For the status API.
pub(super) fn in_effect(
    options: &MountOptions,
    command: &Command,
    matches: &ArgMatches,
) -> BTreeMap<String, String> {
    let mut shown = shown(command, matches);
    // It says how the daemon began, not what it does.
    shown.remove("restart");
    shown.insert("allow-other".into(), options.allow_other().to_string());
    shown.insert("threads".into(), options.threads().to_string());
    if let Ok(size) = options.cache_size() {
        shown.insert("cache-size".into(), size.to_string());
    }
    shown
}

/// The value of each option by its long name: as typed, as in the file, or the default if that is
/// constant.
pub(super) fn shown(command: &Command, matches: &ArgMatches) -> BTreeMap<String, String> {
    let value = |argument: &Arg| {
        let values = matches.get_raw(argument.get_id().as_str()).filter(|_| argument.get_long().is_some())?;
        let text = values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
        Some((argument.get_long()?.to_owned(), text))
    };
    command.get_arguments().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Option<ByteSize> = Some(ByteSize(10 << 30));

    #[test]
    fn the_cache_must_fit() {
        let gib = |n: u64| Some(ByteSize(n << 30));
        assert_eq!(cache_size(None, false, MEMORY), Ok(DEFAULT_CACHE_SIZE));
        assert_eq!(cache_size(None, false, gib(1)), Ok(ByteSize(512 << 20)));
        assert_eq!(cache_size(None, false, None), Ok(DEFAULT_CACHE_SIZE));
        assert_eq!(cache_size(gib(8), false, MEMORY), Ok(ByteSize(8 << 30)));
        let large = cache_size(gib(9), false, MEMORY).unwrap_err().to_string();
        assert!(large.contains("9 GiB") && large.contains("10 GiB") && large.contains("--force"), "{large}");
        assert_eq!(cache_size(gib(9), true, MEMORY), Ok(ByteSize(9 << 30)));
        let impossible = cache_size(gib(11), true, MEMORY).unwrap_err().to_string();
        assert!(impossible.contains("11 GiB") && impossible.contains("10 GiB"), "{impossible}");
        let small = cache_size(Some(ByteSize(1 << 20)), true, MEMORY).unwrap_err().to_string();
        assert!(small.contains("1 MiB") && small.contains("16 MiB"), "{small}");
    }

    #[test]
    fn paths_are_normal() {
        assert_eq!(filer_path("/").as_deref(), Ok("/"));
        assert_eq!(filer_path("//a/b//").as_deref(), Ok("/a/b"));
        assert!(filer_path("a").is_err());
        assert!(filer_path("/a/../b").is_err());
    }

    #[test]
    fn engines_are_told_by_their_servers() {
        let at = "[::1]:8080=10.0.0.1:18515".parse::<EngineLocation>().unwrap();
        assert_eq!((at.server.as_str(), at.engine.as_str()), ("[::1]:8080", "10.0.0.1:18515"));
        for wrong in ["", "a:1", "a:1=b", "a=b:1", ":1=b:1", "a:1=b:70000", "a:1=b:2 c:1=d:2"] {
            assert!(wrong.parse::<EngineLocation>().is_err(), "{wrong}");
        }
    }
}
