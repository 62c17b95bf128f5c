//! `rdma-engine bench`: measures reads, by transport, size, and how many are in progress at a
//! time.
//!
//! Reads are those of a mount: over verbs the device writes directly into the readers' memory.

mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use daemon::output;
use daemon::size::ByteSize;
use rand::Rng;
use rdma_engine::FileId;
use rdma_engine::client::{Client, ReadError, ReadTarget, RegistrationCache};

use super::remote::{TargetArgs, TransportChoice, deadline};

#[derive(Debug, Args)]
pub(super) struct BenchOptions {
    #[command(flatten)]
    engine: TargetArgs,

    /// Needles to read: VOLUME,KEYCOOKIE
    #[arg(value_name = "FID", required = true)]
    fids: Vec<FileId>,

    /// Bytes of each read; needles that are shorter are read whole
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "4KiB,64KiB,1MiB", value_parser = ByteSize::parse_u32)]
    sizes: Vec<u32>,

    /// Reads under way at a time
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', default_value = "1,16", value_parser = clap::value_parser!(u32).range(1..=4096))]
    depths: Vec<u32>,

    /// Transports to measure
    #[arg(long, value_name = "TRANSPORT,…", value_delimiter = ',', default_value = "local,tcp")]
    transports: Vec<TransportChoice>,

    /// How long each line is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

/// The readers' memory is registered in parts of this many bytes, as a mount's cache is.
const REGISTRATION_UNIT: usize = 2 << 20;

/// A needle to read.
struct BenchNeedle {
    fid: FileId,
    data_size: u32,
    token: Option<String>,
}

/// Measures, and prints a table.
pub(super) async fn run(options: BenchOptions) -> anyhow::Result<()> {
    output::print(format_args!(
        "{:<9} {:>7} {:>5} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9}\n",
        "transport", "size", "depth", "MB/s", "reads/s", "p50 us", "p90 us", "p99 us", "max us"
    ))?;
    let signer = options.engine.signer()?;
    for &choice in &options.transports {
        let client = options.engine.client(choice)?;
        let mut needles = Vec::new();
        for &fid in &options.fids {
            let token = signer.as_ref().map(|signer| signer.token(fid));
            let target = ReadTarget { fid, offset: 0, token: token.as_deref() };
            let found = client.read(target, &mut [], deadline()).await;
            let found = found.with_context(|| format!("cannot read {fid} from {}", client.address()))?;
            ensure!(found.needle.data_size > 0, "{fid} is empty");
            needles.push(BenchNeedle { fid, data_size: found.needle.data_size, token });
        }
        let needles = Arc::new(needles);
        for &size in &options.sizes {
            for &depth in &options.depths {
                let limit = Duration::from_secs(options.seconds.into());
                // Memory is registered with the device of a connection, so each line has its own
                // client.
                let client = options.engine.client(choice)?;
                let (bytes, elapsed, mut times) = measure(&client, &needles, size, depth, limit).await?;
                let transport = client.transport().map_or("none", rdma_engine::protocol::Transport::name);
                times.sort_unstable();
                let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
                output::print(format_args!(
                    "{:<9} {:>7} {:>5} {:>10.1} {:>10.0} {:>9.1} {:>9.1} {:>9.1} {:>9.1}\n",
                    transport,
                    ByteSize(size.into()).typed(),
                    depth,
                    bytes as f64 / 1e6 / elapsed.as_secs_f64(),
                    times.len() as f64 / elapsed.as_secs_f64(),
                    at(0.5),
                    at(0.9),
                    at(0.99),
                    at(1.0),
                ))?;
            }
        }
    }
    Ok(())
}

/// Reads for the time `limit`. Returns the bytes, the elapsed time, and how many nanoseconds each
/// read took.
async fn measure(
    client: &Client,
    needles: &Arc<Vec<BenchNeedle>>,
    size: u32,
    depth: u32,
    limit: Duration,
) -> anyhow::Result<(u64, Duration, Vec<u64>)> {
    let (region, parts) = memory::parts(depth as usize, size as usize);
    client.register(RegistrationCache::new(region, REGISTRATION_UNIT));
    // Connects, which is not measured.
    client.ping(deadline()).await?;
    let began = Instant::now();
    let readers: Vec<_> = parts
        .into_iter()
        .map(|mut part| {
            let (client, needles) = (client.clone(), needles.clone());
            tokio::spawn(async move {
                let (mut bytes, mut times) = (0, Vec::new());
                while began.elapsed() < limit || times.is_empty() {
                    let (needle, offset) = {
                        let mut random = rand::rng();
                        let needle = &needles[random.random_range(0..needles.len())];
                        (needle, random.random_range(0..=needle.data_size.saturating_sub(size)))
                    };
                    let target = ReadTarget { fid: needle.fid, offset, token: needle.token.as_deref() };
                    let asked = Instant::now();
                    let (delivered, back) = client.read_owned(target, part, deadline()).await;
                    let delivered = delivered?;
                    // Only a failed read keeps the memory.
                    part = back.ok_or_else(|| ReadError::Lost("the device kept the memory".to_owned()))?;
                    times.push(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
                    bytes += u64::from(delivered.needle.length);
                }
                Ok::<_, ReadError>((bytes, times))
            })
        })
        .collect();
    let (mut bytes, mut times) = (0, Vec::new());
    for reader in readers {
        let (read, took) = reader.await.context("a reader panicked")??;
        bytes += read;
        times.extend(took);
    }
    Ok((bytes, began.elapsed(), times))
}
