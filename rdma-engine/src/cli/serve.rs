//! `rdma-engine serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rdma_engine::metrics::Metrics;
use rdma_engine::server::{Engine, Options};
use rdma_engine::settings::Settings;
use rdma_engine::store::Store;
use rdma_engine::tls;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{http, size};

#[derive(Debug, Args)]
pub(super) struct ServeOptions {
    /// A data directory of the volume server (`weed volume -dir`); repeat it for several
    #[arg(long, value_name = "DIR", required = true)]
    volume_dir: Vec<PathBuf>,

    /// Where the volume server keeps indexes, if not beside the data (`weed volume -dir.idx`)
    #[arg(long, value_name = "DIR")]
    index_dir: Option<PathBuf>,

    /// Where clients connect; port 0 takes a free port
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:18515", value_parser = listen_address)]
    listen: SocketAddr,

    /// Where /metrics and /healthz are, `none` for nowhere; port 0 takes a free port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:18516", value_parser = StatusAddress::from_str)]
    status_addr: StatusAddress,

    /// The cluster's security.toml [default: where weed looks for it]
    #[arg(long, value_name = "FILE")]
    security: Option<PathBuf>,

    /// Do not hand the volumes' descriptors to processes of this host, not even to root and this user
    #[arg(long)]
    no_local: bool,

    /// Do not let clients come by RDMA
    #[arg(long)]
    no_verbs: bool,

    /// The RDMA device to use, as `rdma-engine devices` names it [default: all]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Memory that is registered for each session over RDMA; what finds no room in it goes in line
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size::parse)]
    staging: u32,

    /// Such memory of all sessions, in MiB; without room for another session's, the client takes another transport
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_staging: u32,

    /// How long a client may take to fetch what was granted, in milliseconds
    #[arg(long, value_name = "MS", default_value = "10000", value_parser = clap::value_parser!(u32).range(100..=600_000))]
    lease: u32,

    /// Sessions at a time; when there are more, one that has been idle for ten seconds makes room, or the client is refused
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_sessions: u32,

    /// Sessions of one peer, which is an address of the network (IPv6: a /64) or a user of this host
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_peer_sessions: u32,

    /// Memory for answers that wait for their clients, of all sessions, in MiB; one peer has a quarter of it, and further answers
    /// are read when their clients take them
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_waiting: u32,

    /// Requests of one session that may be unanswered at a time
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_in_flight: u32,

    /// Sessions that read nothing are closed after as many seconds
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    idle_timeout: u32,
}

#[derive(Debug, Clone, Copy)]
struct StatusAddress(Option<SocketAddr>);

impl FromStr for StatusAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self(None)),
            text => text
                .parse()
                .map(|address| Self(Some(address)))
                .map_err(|_| "an address is as in 127.0.0.1:18516, or `none`"),
        }
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address is as in 0.0.0.0:18515 or [::]:18515")
}

/// Serves until a signal comes.
pub(super) async fn run(options: ServeOptions) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    raise_descriptor_limit();

    let settings = match &options.security {
        Some(file) => Settings::read(Some(file), |name| std::env::var(name).ok())?,
        None => Settings::load()?,
    };
    let verifier = settings.read_verifier()?;
    if verifier.is_some() {
        tracing::info!(origin = settings.origin(), "reads need tokens");
    }
    let tls = tls::engine(&settings)?;
    if tls.is_some() {
        tracing::info!(origin = settings.origin(), "clients over the network need certificates");
    }
    let directories =
        options.volume_dir.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let store = Store::new(options.volume_dir, options.index_dir)
        .with_context(|| format!("cannot list --volume-dir {directories}"))?;
    let store = Arc::new(store);
    let metrics = Arc::new(Metrics::default());
    let limits = Options {
        sessions: options.max_sessions as usize,
        sessions_of_peer: options.max_peer_sessions as usize,
        waiting: u64::from(options.max_waiting) << 20,
        in_flight: options.max_in_flight,
        idle: Duration::from_secs(options.idle_timeout.into()),
        local: !options.no_local,
        verbs: !options.no_verbs,
        device: options.device,
        staging: options.staging as usize,
        all_staging: u64::from(options.max_staging) << 20,
        lease: Duration::from_millis(options.lease.into()),
        tls,
        proof: settings.proof_key()?,
        ..Options::default()
    };
    let engine = Engine::bind(options.listen, store.clone(), verifier, metrics.clone(), &limits)
        .await
        .with_context(|| format!("cannot listen on --listen {}", options.listen))?;
    let status = match options.status_addr.0 {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot serve metrics on --status-addr {address}"))?,
        ),
        None => None,
    };

    tracing::info!(volumes = store.volumes(), directories, "reading volumes");
    println!("serving {}", engine.address()?);
    if let Some(status) = &status {
        println!("status http://{}", status.local_addr()?);
    }
    let status = async {
        match status {
            Some(listener) => http::serve(listener, metrics, store).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = engine.serve() => {}
        outcome = status => outcome.context("the status API has stopped")?,
        _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
    }
    Ok(())
}

/// Every open volume takes two descriptors, every session one: as many as the system lets this process have.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it may not be raised, the limit that there is holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
