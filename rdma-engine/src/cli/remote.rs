//! `rdma-engine ping` and `rdma-engine read`, and what all commands that talk to an engine share.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use daemon::output::{self, OutputError};
use daemon::size::ByteSize;
use rdma_engine::FileId;
use rdma_engine::client::{self, Client, ReadTarget};
use rdma_engine::protocol::{DEFAULT_PORT, Transport};
use rdma_engine::settings::{SecuritySettings, SettingsError};
use rdma_engine::tls;
use rdma_engine::token::ReadSigner;
use tokio::time::Instant;

/// How long a single request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How many bytes one request asks for, if the engine's maximum is unknown.
const DEFAULT_READ_SIZE: u32 = 4 << 20;

/// The engine to ask.
#[derive(Debug, Clone, Args)]
pub(super) struct TargetArgs {
    /// The engine's host, and its port if it is not 18515
    #[arg(value_name = "TARGET")]
    pub(super) target: String,

    /// The cluster's security.toml, with the key for read tokens and the certificates [default:
    /// where weed looks for it]
    #[arg(long, value_name = "FILE")]
    security: Option<PathBuf>,
}

/// A transport, or the best there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportChoice {
    /// The first of local, verbs and tcp that works
    Auto,
    /// The volumes' files themselves, on the same host
    Local,
    /// RDMA; small reads go in line
    Verbs,
    /// In line on the TCP connection
    Tcp,
}

#[derive(Debug, Args)]
pub(super) struct PingOptions {
    #[command(flatten)]
    engine: TargetArgs,

    /// Which transport to use
    #[arg(long, value_name = "TRANSPORT", default_value = "auto")]
    transport: TransportChoice,

    /// How often to ask
    #[arg(long, value_name = "COUNT", default_value = "4", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

#[derive(Debug, Args)]
pub(super) struct ReadOptions {
    #[command(flatten)]
    engine: TargetArgs,

    /// The needle: VOLUME,KEYCOOKIE
    fid: FileId,

    /// Which transport to use
    #[arg(long, value_name = "TRANSPORT", default_value = "auto")]
    transport: TransportChoice,

    /// Where to begin
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = ByteSize::parse_u32)]
    offset: u32,

    /// How much to read at most [default: up to the end]
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::parse_u32)]
    length: Option<u32>,
}

impl TargetArgs {
    pub(super) fn client(&self, choice: TransportChoice) -> anyhow::Result<Client> {
        let transports = match choice {
            TransportChoice::Auto => client::ClientOptions::default().transports,
            TransportChoice::Local => vec![Transport::Local],
            TransportChoice::Verbs => vec![Transport::Verbs],
            TransportChoice::Tcp => vec![Transport::Tcp],
        };
        let settings = self.settings()?;
        let (tls, key) = (tls::grpc(&settings)?, settings.proof_key()?);
        // The user has named the engine.
        let trust = client::Trust { named: true, key, volume_server: None };
        let options = client::ClientOptions {
            transports,
            connect: REQUEST_TIMEOUT,
            tls: tls.map(|tls| tls.config()),
            trust,
            ..client::ClientOptions::default()
        };
        Ok(Client::new(self.address(), options))
    }

    pub(super) fn signer(&self) -> anyhow::Result<Option<ReadSigner>> {
        Ok(self.settings()?.read_signer()?)
    }

    fn settings(&self) -> Result<SecuritySettings<'static>, SettingsError> {
        match &self.security {
            Some(file) => SecuritySettings::read(Some(file), |name| std::env::var(name).ok()),
            None => SecuritySettings::load(),
        }
    }

    /// The target with a port. An IPv6 address contains colons, and needs brackets before a port.
    fn address(&self) -> String {
        let has_port = match self.target.rsplit_once(':') {
            Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
            None => false,
        };
        match &self.target {
            target if has_port => target.clone(),
            target if target.contains(':') && !target.starts_with('[') => {
                format!("[{target}]:{DEFAULT_PORT}")
            }
            target => format!("{target}:{DEFAULT_PORT}"),
        }
    }
}

pub(super) fn deadline() -> Instant {
    Instant::now() + REQUEST_TIMEOUT
}

/// Asks an engine whether it is there.
pub(super) async fn ping(options: PingOptions) -> anyhow::Result<()> {
    let client = options.engine.client(options.transport)?;
    for number in 1..=options.count {
        let took =
            client.ping(deadline()).await.with_context(|| format!("no answer from {}", client.address()))?;
        let transport = client.transport().map_or("none", Transport::name);
        let micros = took.as_nanos() as f64 / 1e3;
        output::print(format_args!("{} over {transport}: {number} in {micros:.1} us\n", client.address()))?;
    }
    Ok(())
}

/// Writes a needle's bytes to standard output.
pub(super) async fn read(options: ReadOptions) -> anyhow::Result<()> {
    let client = options.engine.client(options.transport)?;
    let token = options.engine.signer()?.map(|signer| signer.token(options.fid));
    let failed = || format!("cannot read {} from {}", options.fid, client.address());
    client.ping(deadline()).await.with_context(failed)?;
    let max = client.max_read_size().unwrap_or(DEFAULT_READ_SIZE);
    let mut stdout = std::io::stdout().lock();
    let mut buffer = vec![0; options.length.unwrap_or(max).min(max) as usize];
    let (mut offset, mut left) = (options.offset, options.length.unwrap_or(u32::MAX));
    loop {
        let length = buffer.len().min(left as usize);
        let target = ReadTarget { fid: options.fid, offset, token: token.as_deref() };
        let delivered = client.read(target, &mut buffer[..length], deadline()).await.with_context(failed)?;
        let needle = delivered.needle;
        if offset == options.offset && needle.flags.is_gzip() {
            output::note(format_args!("{} is stored compressed (gzip)", options.fid));
        }
        ensure!(needle.length as usize <= length, "more bytes than were asked for");
        stdout.write_all(&buffer[..needle.length as usize]).map_err(OutputError::from)?;
        offset += needle.length;
        left -= needle.length;
        if left == 0 || offset >= needle.data_size {
            break;
        }
    }
    Ok(stdout.flush().map_err(OutputError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_a_port_has_the_default_port() {
        for (target, address) in [
            ("host", "host:18515"),
            ("host:1", "host:1"),
            ("10.0.0.1", "10.0.0.1:18515"),
            ("fe80::1", "[fe80::1]:18515"),
            ("[fe80::1]", "[fe80::1]:18515"),
            ("[fe80::1]:7", "[fe80::1]:7"),
        ] {
            let options = TargetArgs { target: target.to_owned(), security: None };
            assert_eq!(options.address(), address);
        }
    }
}
