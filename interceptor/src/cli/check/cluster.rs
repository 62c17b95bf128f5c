//! The volume servers of a cluster, and the engines beside them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use futures::future::join_all;
use rdma_engine::client::{Client, Options, Trust};
use rdma_engine::protocol::DEFAULT_PORT;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::host::{Finding, State};
use crate::cli::http;
use crate::seaweed::filer::FilerClient;
use crate::seaweed::security::Security;

/// Volume servers that are looked at, at most.
const MAX_SERVERS: usize = 64;

/// How long an engine may take to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(3);

/// One finding for each volume server, and one for the engine beside it.
pub(super) async fn findings(filer: &FilerClient, security: &Security) -> Vec<Finding> {
    let masters = filer.configuration().masters.clone();
    let listed = match tokio::task::spawn_blocking(move || volume_servers(&masters)).await {
        Ok(listed) => listed,
        Err(error) => Err(error.into()),
    };
    match listed {
        Ok(servers) => {
            let each = servers.iter().take(MAX_SERVERS).map(|server| async move {
                let (server_finding, engine_finding) =
                    tokio::join!(reached(server), engine(server, security));
                [server_finding, engine_finding]
            });
            join_all(each).await.into_iter().flatten().collect()
        }
        Err(error) => vec![server_finding(State::Lost, format!("cannot be listed: {error:#}"))],
    }
}

/// Where the volume servers are, as a master that answers knows them.
fn volume_servers(masters: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let mut failure = anyhow::anyhow!("the filer names no master");
    for master in masters {
        let listed = http::ask(master, "GET", "/dir/status", &[], "", Duration::ZERO)
            .and_then(|answer| Ok(serde_json::from_str::<Value>(&answer.body)?))
            .with_context(|| format!("master {master}"));
        match listed {
            Ok(topology) => return Ok(urls(&topology["Topology"])),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The addresses of all data nodes.
fn urls(topology: &Value) -> BTreeSet<String> {
    let children = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let centers = children(topology, "DataCenters");
    let racks = centers.iter().flat_map(|center| children(center, "Racks"));
    let nodes = racks.flat_map(|rack| children(&rack, "DataNodes"));
    nodes.filter_map(|node| Some(node["Url"].as_str()?.to_owned())).collect()
}

async fn reached(server: &str) -> Finding {
    let address = server.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        http::ask(&address, "GET", "/status", &[], "", Duration::ZERO).map(drop)
    });
    match asked.await {
        Ok(Ok(())) => server_finding(State::Ok, format!("{server} answers")),
        Ok(Err(error)) => server_finding(State::Lost, format!("{server}: {error:#}")),
        Err(error) => server_finding(State::Lost, format!("{server}: {error}")),
    }
}

fn server_finding(state: State, found: String) -> Finding {
    Finding {
        ability: "volume server",
        state,
        found,
        lost: "what only it has cannot be read",
        remedy: "start it and open its HTTP port to this host, or see --volume-server-access",
    }
}

async fn engine(server: &str, security: &Security) -> Finding {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let address = format!("{host}:{DEFAULT_PORT}");
    let trust = Trust { named: false, key: security.proof_key(), volume_server: Some(server.to_owned()) };
    let options = Options { connect: ENGINE_TIMEOUT, tls: security.grpc_tls(), trust, ..Options::default() };
    let client = Client::new(address.clone(), options);
    let answer = client.ping(Instant::now() + ENGINE_TIMEOUT).await;
    let transport = client.transport().map_or("no transport", |transport| transport.name());
    Finding {
        ability: "engine",
        state: if answer.is_ok() { State::Ok } else { State::Lost },
        found: match answer {
            Ok(_) => format!("{address} answers over {transport}"),
            Err(error) => format!("{address}: {error}"),
        },
        lost: "the volume server is asked over HTTP, which is slower",
        remedy: "start `rdma-engine serve` beside the volume server; see --rdma-port and --engine",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rack_is_looked_through() {
        let node = |url: &str| serde_json::json!({ "Url": url, "Volumes": 3 });
        let topology = serde_json::json!({ "DataCenters": [
            { "Racks": [{ "DataNodes": [node("a:1"), node("b:1")] }, { "DataNodes": null }] },
            { "Racks": [{ "DataNodes": [node("c:1")] }] },
        ] });
        assert_eq!(urls(&topology), ["a:1", "b:1", "c:1"].map(str::to_owned).into());
        assert_eq!(urls(&Value::Null), BTreeSet::new());
    }
}
