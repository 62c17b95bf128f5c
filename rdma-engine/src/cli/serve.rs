//! `rdma-engine serve`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use daemon::address::{StatusAddress, host_port};
use daemon::size::{ByteSize, SizeError};
use daemon::{descriptors, duration, memory, output, service};
use rdma_engine::metrics::Metrics;
use rdma_engine::server::{Engine, EngineOptions};
use rdma_engine::settings::SecuritySettings;
use rdma_engine::store::Store;
use rdma_engine::tls;

use tokio::net::{TcpListener, lookup_host};
use tokio::signal::unix::{SignalKind, signal};

use super::http;

#[derive(Debug, Args)]
pub(super) struct ServeOptions {
    /// TOML file with options under their long names. Files in FILE.d go before it, variables as
    /// RDMA_ENGINE_VOLUME_DIR before both, and what is typed before all [default:
    /// RDMA_ENGINE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Data directories of the volume server (`weed volume -dir`); may be repeated
    #[arg(long, value_name = "DIR[,…]", required = true, value_delimiter = ',')]
    volume_dir: Vec<PathBuf>,

    /// Where the volume server keeps indexes, if not beside the data (`weed volume -dir.idx`)
    #[arg(long, value_name = "DIR")]
    index_dir: Option<PathBuf>,

    /// Where clients connect; port 0 takes a free port
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:18515", value_parser = host_port)]
    listen: String,

    /// Where /metrics and /healthz are, `none` for nowhere; port 0 takes a free port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:18516", value_parser = StatusAddress::from_str)]
    status_addr: StatusAddress,

    /// The cluster's security.toml [default: where weed looks for it]
    #[arg(long, value_name = "FILE")]
    security: Option<PathBuf>,

    /// Do not hand the volumes' descriptors to processes of this host, not even to root and this
    /// user
    #[arg(long)]
    no_local: bool,

    /// Do not let clients come by RDMA
    #[arg(long)]
    no_verbs: bool,

    /// The RDMA device to use, as `rdma-engine devices` names it [default: all]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Memory that is registered for each session over RDMA; what finds no room in it goes in line
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = ByteSize::parse_u32)]
    staging: u32,

    /// Such memory of all sessions; without room for another session's, the client takes another
    /// transport [default: 1GiB, or half of the memory if that is less]
    #[arg(long, value_name = "SIZE", value_parser = held_memory)]
    max_staging: Option<ByteSize>,

    /// How long a client may take to fetch what was granted, from 100ms to 10m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = |text: &str| duration::within(text, LEASES))]
    lease: Duration,

    /// Sessions at a time; when there are more, one that has been idle for ten seconds makes room,
    /// or the client is refused
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_sessions: u32,

    /// Sessions of one peer, which is an address of the network (IPv6: a /64) or a user of this
    /// host
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_peer_sessions: u32,

    /// Memory for answers that wait for their clients, of all sessions; one peer has a quarter of
    /// it, and further answers are read when their clients take them [default: 64MiB, or a quarter
    /// of the memory if that is less]
    #[arg(long, value_name = "SIZE", value_parser = held_memory)]
    max_waiting: Option<ByteSize>,

    /// Requests of one session that may be unanswered at a time
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_in_flight: u32,

    /// Sessions that read nothing are closed after this time, from 1s to 1440m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = |text: &str| duration::within(text, IDLE_TIMEOUTS))]
    idle_timeout: Duration,
}

/// The values of `--lease`.
const LEASES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// The values of `--idle-timeout`.
const IDLE_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// The default of `--max-staging`, unless it is more than half of the memory.
const DEFAULT_MAX_STAGING: u64 = 1 << 30;

/// The default of `--max-waiting`, unless it is more than a quarter of the memory.
const DEFAULT_MAX_WAITING: u64 = 64 << 20;

/// Parses an amount of memory that is held for clients, which must exist.
fn held_memory(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: SizeError| error.to_string())?;
    let memory = memory::limit().map_or(ByteSize(u64::MAX), ByteSize);
    if size < ByteSize(1 << 20) {
        return Err(format!("{size} is too small: the minimum is 1 MiB"));
    }
    if size > memory {
        return Err(format!("more than all the memory that this process may use ({memory})"));
    }
    Ok(size)
}

impl ServeOptions {
    fn all_staging(&self) -> u64 {
        let half = || memory::limit().map_or(u64::MAX, |memory| memory / 2);
        self.max_staging.map_or_else(|| DEFAULT_MAX_STAGING.min(half()), |ByteSize(bytes)| bytes)
    }

    fn all_waiting(&self) -> u64 {
        let quarter = || memory::limit().map_or(u64::MAX, |memory| memory / 4);
        self.max_waiting.map_or_else(|| DEFAULT_MAX_WAITING.min(quarter()), |ByteSize(bytes)| bytes)
    }
}

/// Serves until a signal ends it.
pub(super) async fn run(options: ServeOptions) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // An open volume takes two descriptors, a session one.
    descriptors::raise_limit();

    let settings = match &options.security {
        Some(file) => SecuritySettings::read(Some(file), |name| std::env::var(name).ok())?,
        None => SecuritySettings::load()?,
    };
    let verifier = settings.read_verifier()?;
    if verifier.is_some() {
        tracing::info!(origin = settings.origin(), "reads need tokens");
    }
    let tls = tls::engine(&settings)?;
    if tls.is_some() {
        tracing::info!(origin = settings.origin(), "clients over the network need certificates");
    }
    let (all_staging, all_waiting) = (options.all_staging(), options.all_waiting());
    let directories =
        options.volume_dir.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let store = Store::new(options.volume_dir, options.index_dir)
        .with_context(|| format!("cannot list --volume-dir {directories}"))?;
    let store = Arc::new(store);
    let metrics = Arc::new(Metrics::default());
    let limits = EngineOptions {
        sessions: options.max_sessions as usize,
        sessions_of_peer: options.max_peer_sessions as usize,
        waiting: all_waiting,
        in_flight: options.max_in_flight,
        idle: options.idle_timeout,
        local: !options.no_local,
        verbs: !options.no_verbs,
        device: options.device,
        staging: options.staging as usize,
        all_staging,
        lease: options.lease,
        tls,
        proof: settings.proof_key()?,
        ..EngineOptions::default()
    };
    let cannot_listen = || format!("cannot listen on --listen {}", options.listen);
    let listen = resolve(&options.listen).await.with_context(cannot_listen)?;
    let engine = Engine::bind(listen, store.clone(), verifier, metrics.clone(), &limits)
        .await
        .with_context(cannot_listen)?;
    let status = match &options.status_addr {
        StatusAddress::At(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot serve metrics on --status-addr {address}"))?,
        ),
        StatusAddress::Nowhere => None,
    };

    tracing::info!(volumes = store.volumes(), directories, "reading volumes");
    output::announce(format_args!("serving {}", engine.address()?));
    if let Some(status) = &status {
        output::announce(format_args!("status http://{}", status.local_addr()?));
    }
    service::ready(&format!("serving {}", engine.address()?));
    let watchdog = async {
        let Some(interval) = service::watchdog_interval() else { return std::future::pending().await };
        loop {
            service::alive();
            tokio::time::sleep(interval / 4).await;
        }
    };
    let status = async {
        match status {
            Some(listener) => http::serve(listener, metrics, store).await,
            None => std::future::pending().await,
        }
    };
    let ignore_hangups = async {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP is ignored; SIGTERM and SIGINT end this program");
        }
        std::future::pending().await
    };
    tokio::select! {
        () = engine.serve() => {}
        () = ignore_hangups => {}
        () = watchdog => {}
        outcome = status => outcome.context("the status API has stopped")?,
        _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
    }
    service::stopping();
    Ok(())
}

/// The address of `host_port`. Of several, such as those of `localhost`, an IPv4 address, which
/// every client can use.
async fn resolve(host_port: &str) -> std::io::Result<SocketAddr> {
    let mut addresses: Vec<_> = lookup_host(host_port).await?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())
}
