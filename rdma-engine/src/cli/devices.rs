//! `rdma-engine devices`: the RDMA devices of this host, and which ports an engine or a client
//! would use.

use daemon::output;
use rdma_engine::verbs::{PortSelector, current_numa_node, devices};

/// Prints every device with its ports and their addresses, and then the ports that would be used,
/// best first.
pub(super) fn run() -> anyhow::Result<()> {
    let found = devices()?;
    for device in &found {
        output::print(format_args!("{device}\n"))?;
    }
    // The network of the peer would come first; here there is no peer.
    let selector = PortSelector { numa_node: current_numa_node(), ..PortSelector::default() };
    for (number, port) in selector.select(&found)?.iter().enumerate() {
        let word = if number == 0 { "chosen" } else { "next" };
        let gid = port.gid.map_or("by LID".to_owned(), |entry| format!("GID {}", entry.index));
        output::print(format_args!("{word}: {} port {}, {gid}\n", port.device, port.port))?;
    }
    Ok(())
}
