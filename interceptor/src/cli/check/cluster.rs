//! The volume servers of a cluster, and the engines beside them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use futures::future::join_all;
use rdma_engine::client::ReadError;
use rdma_engine::protocol::Transport;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::host::{Finding, FindingState};
use crate::cli::http;
use crate::cli::options::{ServerOptions, VolumeServerAccess};
use crate::fetch::EngineConfig;
use crate::seaweed::filer::FilerClient;
use crate::seaweed::security::Security;

/// Volume servers that are checked, at most.
const MAX_SERVERS: usize = 64;

/// How long an engine may take to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(3);

/// One finding for each volume server of the cluster of `filer`, and one for each engine that a
/// mount would ask.
pub(super) async fn findings(
    filer: Option<&FilerClient>,
    options: &ServerOptions,
    security: &Security,
) -> Vec<Finding> {
    if options.volume_server_access == VolumeServerAccess::FilerProxy {
        let found = "not asked: all is fetched through the filer, no engine is asked either";
        return vec![server_finding(FindingState::Ok, found.to_owned())];
    }
    let (known, mut findings) = match listed(filer, options.volume_server_access).await {
        None => (None, Vec::new()),
        Some(Ok(servers)) => (Some(servers), Vec::new()),
        Some(Err(error)) => {
            let found = format!("cannot be listed: {error:#}");
            (None, vec![server_finding(FindingState::Lost, found)])
        }
    };
    let (engines, known) = (&options.engines(security), &known);
    let of_cluster = known.iter().flatten().take(MAX_SERVERS).map(|server| async move {
        let (server, engine) = tokio::join!(reached(server), engine(server, engines));
        [Some(server), engine]
    });
    findings.extend(join_all(of_cluster).await.into_iter().flatten().flatten());
    let is_unknown = |server: &&String| known.as_ref().is_none_or(|known| !known.contains(*server));
    let named = options.engine.iter().map(|at| &at.server).filter(is_unknown).map(|server| async move {
        let mut finding = engine(server, engines).await?;
        if known.is_some() {
            finding.state = FindingState::Lost;
            finding.found += &format!("; {server} is no volume server of this cluster");
            finding.lost = "the engine is never asked";
            finding.remedy = "in --engine, name the volume server as it is listed here";
        }
        Some(finding)
    });
    findings.extend(join_all(named).await.into_iter().flatten());
    findings
}

/// The addresses of the volume servers, if there is a filer to know them by.
async fn listed(
    filer: Option<&FilerClient>,
    access: VolumeServerAccess,
) -> Option<anyhow::Result<BTreeSet<String>>> {
    let masters = filer?.configuration().masters.clone();
    let field = match access {
        VolumeServerAccess::PublicUrl => "PublicUrl",
        VolumeServerAccess::Direct | VolumeServerAccess::FilerProxy => "Url",
    };
    let listed = tokio::task::spawn_blocking(move || volume_servers(&masters, field)).await;
    Some(listed.unwrap_or_else(|error| Err(error.into())))
}

/// Where the volume servers are, as a master that answers knows them.
fn volume_servers(masters: &[String], field: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut failure = anyhow::anyhow!("the filer names no master");
    for master in masters {
        let listed = http::send(master, "GET", "/dir/status", &[], "", Duration::ZERO)
            .and_then(|answer| Ok(serde_json::from_str::<Value>(&answer.body)?))
            .with_context(|| format!("master {master}"));
        match listed {
            Ok(topology) => return Ok(urls(&topology["Topology"], field)),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The addresses of all data nodes that are in `field`.
fn urls(topology: &Value, field: &str) -> BTreeSet<String> {
    let children = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let centers = children(topology, "DataCenters");
    let racks = centers.iter().flat_map(|center| children(center, "Racks"));
    let nodes = racks.flat_map(|rack| children(&rack, "DataNodes"));
    nodes.filter_map(|node| Some(node[field].as_str()?.to_owned())).collect()
}

async fn reached(server: &str) -> Finding {
    let address = server.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        http::send(&address, "GET", "/status", &[], "", Duration::ZERO).map(drop)
    });
    match asked.await {
        Ok(Ok(())) => server_finding(FindingState::Ok, format!("{server} answers")),
        Ok(Err(error)) => server_finding(FindingState::Lost, format!("{server}: {error:#}")),
        Err(error) => server_finding(FindingState::Lost, format!("{server}: {error}")),
    }
}

fn server_finding(state: FindingState, found: String) -> Finding {
    Finding {
        ability: "volume server",
        state,
        found,
        lost: "what only it has cannot be read",
        remedy: "start it and open its HTTP port to this host, or see --volume-server-access",
    }
}

/// The engine of a volume server, if a mount would ask any.
async fn engine(server: &str, engines: &EngineConfig) -> Option<Finding> {
    let client = engines.client(server, ENGINE_TIMEOUT)?;
    let answer = client.ping(Instant::now() + ENGINE_TIMEOUT).await;
    let engine = format!("{} of {server}", client.address());
    let found = match &answer {
        Ok(_) => {
            let transport = client.transport();
            let trust = match (engines.addresses.contains_key(server), transport) {
                // Who hands over files has to prove itself, named or not.
                (true, transport) if transport != Some(Transport::Local) => "is named by --engine",
                _ => "has proved itself",
            };
            let transport = transport.map_or("no transport", |transport| transport.name());
            format!("{engine} is reached over {transport} and {trust}")
        }
        Err(ReadError::Unproved(reason)) => {
            format!("{engine} is reached and has not proved itself: {reason}")
        }
        Err(error) if error.remedy().is_some() => format!("{engine} is reached and cannot be asked: {error}"),
        Err(error) => format!("{engine} is not reached: {error}"),
    };
    Some(Finding {
        ability: "engine",
        state: if answer.is_ok() { FindingState::Ok } else { FindingState::Lost },
        found,
        lost: "the volume server is asked over HTTP, which is slower",
        remedy: answer
            .err()
            .and_then(|error| error.remedy())
            .unwrap_or("start `rdma-engine serve` beside the volume server; see --rdma-port and --engine"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rack_is_looked_through() {
        let node = |url: &str| serde_json::json!({ "Url": url, "PublicUrl": format!("of-{url}") });
        let topology = serde_json::json!({ "DataCenters": [
            { "Racks": [{ "DataNodes": [node("a:1"), node("b:1")] }, { "DataNodes": null }] },
            { "Racks": [{ "DataNodes": [node("c:1")] }] },
        ] });
        assert_eq!(urls(&topology, "Url"), ["a:1", "b:1", "c:1"].map(str::to_owned).into());
        assert_eq!(urls(&topology, "PublicUrl"), ["of-a:1", "of-b:1", "of-c:1"].map(str::to_owned).into());
        assert_eq!(urls(&Value::Null, "Url"), BTreeSet::new());
    }
}
