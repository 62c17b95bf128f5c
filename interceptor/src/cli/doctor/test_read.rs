//! A file of the directory, read from each source that a mount with the same options has.
//!
//! Whole chunks are compared with their stored checksums on the way ([`source_reader`]), and the
//! bytes of each engine with those of the volume server.
//!
//! [`source_reader`]: super::source_reader

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use daemon::size::ByteSize;
use rdma_engine::protocol::Transport;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::source_reader::{MeasureError, Measurement, SourceReader};
use crate::cli::check::ConnectedCluster;
use crate::cli::host::{Finding, FindingState};
use crate::cli::options::{ServerOptions, VolumeServerAccess};
use crate::fetch::EngineConfig;
use crate::read::FileVersion;
use crate::telemetry::Source;

/// The ability to read a file over HTTP, without which the verdict is that nothing can be read.
pub(super) const READING: &str = "reading over http";

/// How long the address of an engine may take to be found.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the first of `files` that can be read from each source, and says what came of it.
pub(super) async fn read_from_each_source(
    cluster: &ConnectedCluster,
    options: &ServerOptions,
    files: &[Arc<FileVersion>],
) -> (Vec<Finding>, Vec<Measurement>) {
    let access = options.volume_server_access;
    let http = SourceReader::new(cluster, access, Source::Http, EngineConfig::default());
    let (mut measured, mut failure) = (Vec::new(), None);
    let mut chosen = files.first();
    for file in files {
        match http.measure(file).await {
            Ok(measurement) => {
                measured.push(measurement);
                chosen = Some(file);
                break;
            }
            Err(error) => failure = failure.or(Some(format!("{}: {error}", file.path()))),
        }
    }
    let Some(file) = chosen else {
        return (vec![untested("the directory has no file whose bytes are on volume servers")], measured);
    };
    let mut of_engines = Vec::new();
    for (source, engines) in engine_sources(cluster, options, &http.asked_servers()).await {
        let outcome = SourceReader::new(cluster, access, source, engines).measure(file).await;
        of_engines.push((source, outcome.and_then(|measurement| compared(measurement, measured.first()))));
    }
    // If there is no engine at all, the findings of the check say so.
    let has_engine = of_engines.iter().any(|(_, outcome)| outcome.is_ok());
    of_engines.retain(|(_, outcome)| has_engine || !matches!(outcome, Err(MeasureError::NotConnected(_))));

    let is_readable = has_engine || !measured.is_empty();
    let mut findings: Vec<_> = measured.iter().map(delivered).collect();
    findings.extend(failure.map(|reason| {
        let state = if is_readable { FindingState::Lost } else { FindingState::Missing };
        finding(Source::Http, state, reason)
    }));
    for (source, outcome) in of_engines {
        match outcome {
            Ok(measurement) => {
                findings.push(delivered(&measurement));
                measured.push(measurement);
            }
            Err(error) => findings.push(finding(source, FindingState::Lost, error.to_string())),
        }
    }
    (findings, measured)
}

/// The sources above HTTP that can be there, each with engines that have no other transport.
async fn engine_sources(
    cluster: &ConnectedCluster,
    options: &ServerOptions,
    servers: &[String],
) -> Vec<(Source, EngineConfig)> {
    if options.volume_server_access == VolumeServerAccess::FilerProxy {
        return Vec::new();
    }
    let engines = options.engines(&cluster.security);
    let mut transports = engines.transports.clone();
    transports.sort_unstable_by_key(|transport| transport.name());
    transports.dedup();
    let mut sources = Vec::new();
    for transport in transports {
        let (source, is_possible) = match transport {
            Transport::Verbs => (Source::Verbs, rdma_engine::rdma_ports().is_ok()),
            Transport::Local => (Source::Local, are_here(servers, &engines).await),
            Transport::Tcp => (Source::Tcp, true),
        };
        if is_possible {
            sources.push((source, EngineConfig { transports: vec![transport], ..engines.clone() }));
        }
    }
    sources
}

/// Whether an engine of these volume servers is on this host.
async fn are_here(servers: &[String], engines: &EngineConfig) -> bool {
    for server in servers {
        let engine = engines.addresses.get(server).unwrap_or(server);
        let Ok(Ok(mut addresses)) = timeout(RESOLVE_TIMEOUT, lookup_host(engine)).await else { continue };
        // Only addresses of this host can be bound.
        if addresses.any(|address| UdpSocket::bind((address.ip(), 0)).is_ok()) {
            return true;
        }
    }
    false
}

/// Compares the bytes with those that another source has sent.
fn compared(measurement: Measurement, other: Option<&Measurement>) -> Result<Measurement, MeasureError> {
    let others = other.map_or(&[][..], |other| &other.checksums);
    match measurement.checksums.iter().zip(others).all(|(own, other)| own == other) {
        true => Ok(measurement),
        false => Err(MeasureError::Failed(format!("{}: other bytes than over http", measurement.file))),
    }
}

fn delivered(measurement: &Measurement) -> Finding {
    let Measurement { source, file, bytes, seconds, first_byte_seconds, is_verified, .. } = measurement;
    let (rate, first_byte) = (*bytes as f64 / seconds / 1e6, first_byte_seconds * 1e3);
    let checked = if *is_verified { "checksums are right" } else { "a part of a chunk, without a checksum" };
    let bytes = ByteSize(*bytes);
    let found = format!("{rate:.0} MB/s, first byte after {first_byte:.2} ms; {bytes} of {file}, {checked}");
    finding(*source, FindingState::Ok, found)
}

/// The finding that there is nothing to read a test from.
pub(super) fn untested(reason: &str) -> Finding {
    finding(Source::Http, FindingState::Untested, reason.to_owned())
}

fn finding(source: Source, state: FindingState, found: String) -> Finding {
    let is_engine = source != Source::Http;
    Finding {
        ability: match source {
            Source::Verbs => "reading over verbs",
            Source::Local => "reading over local",
            Source::Tcp => "reading over tcp",
            _ => READING,
        },
        state,
        found,
        lost: match is_engine {
            true => "chunks come from another source, which may be slower",
            false => "files whose chunks no engine delivers cannot be read",
        },
        remedy: match is_engine {
            true => "see the log of the engine; --transport leaves a source out",
            false => {
                "what the reason asks for: the cluster's security.toml (--security), a volume server that is down, \
                 its port, a damaged volume"
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(source: Source, checksums: &[u32]) -> Measurement {
        Measurement {
            source,
            file: "/a".into(),
            bytes: 4 << 20,
            seconds: 0.01,
            first_byte_seconds: 0.0002,
            is_verified: true,
            checksums: checksums.to_vec(),
        }
    }

    #[test]
    fn other_bytes_are_a_failure() {
        let http = measurement(Source::Http, &[1, 2, 3]);
        // Time was over sooner.
        let shorter = measurement(Source::Tcp, &[1, 2]);
        assert_eq!(compared(shorter.clone(), Some(&http)), Ok(shorter.clone()));
        assert_eq!(compared(shorter.clone(), None), Ok(shorter));
        let wrong = compared(measurement(Source::Tcp, &[1, 7, 3]), Some(&http)).unwrap_err();
        assert!(wrong.to_string().contains("other bytes"), "{wrong}");
    }

    #[test]
    fn a_measurement_is_told_in_one_line() {
        let finding = delivered(&measurement(Source::Local, &[]));
        assert_eq!((finding.ability, finding.state), ("reading over local", FindingState::Ok));
        assert_eq!(finding.found, "419 MB/s, first byte after 0.20 ms; 4 MiB of /a, checksums are right");
    }

    #[tokio::test]
    async fn this_host_is_known() {
        let engines = EngineConfig::default();
        assert!(are_here(&["127.0.0.1:8080".into()], &engines).await);
        // Of a network for documentation.
        assert!(!are_here(&["192.0.2.1:8080".into()], &engines).await);
    }
}
