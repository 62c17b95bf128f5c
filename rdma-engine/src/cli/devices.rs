//! `rdma-engine devices`: what this host has for RDMA, and what an engine or a client would use of it.

use daemon::output;
use rdma_engine::verbs::{PortSelector, current_numa_node, devices};

/// Prints every device with its ports and their addresses, and then the ports that would be used, the best first.
pub(super) fn run() -> anyhow::Result<()> {
    let found = devices()?;
    for device in &found {
        output::print(format_args!("{device}\n"))?;
    }
    // A peer's network decides before all else; here there is none.
    let wanted = PortSelector { numa_node: current_numa_node(), ..PortSelector::default() };
    for (number, place) in wanted.select(&found)?.iter().enumerate() {
        let word = if number == 0 { "chosen" } else { "next" };
        let gid = place.gid.map_or("by LID".to_owned(), |entry| format!("GID {}", entry.index));
        output::print(format_args!("{word}: {} port {}, {gid}\n", place.device, place.port))?;
    }
    Ok(())
}
