//! Chooses the device, port and address to use.

use std::cmp::Reverse;
use std::fs;
use std::net::IpAddr;

use super::VerbsError;
use super::device::{Device, Gid, GidEntry, GidKind, LinkLayer, Port};

/// What a port must have. Every field that is `None` leaves the choice open.
#[derive(Debug, Clone, Default)]
pub struct PortSelector {
    /// The device's name.
    pub device: Option<String>,
    /// The port's number.
    pub port: Option<u8>,
    /// The address's index in the port's GID table.
    pub gid_index: Option<u8>,
    /// This host's address on the network of the peer, such as the local end of the bootstrap's
    /// connection. A RoCE port with this address is preferred to all others, so that both ends
    /// agree on the network and on the version of IP.
    pub near: Option<IpAddr>,
    /// The NUMA node whose memory will be used; devices attached to it are preferred.
    pub numa_node: Option<u32>,
}

/// A port, with the address to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSelection {
    /// Name of the device.
    pub device: String,
    /// Number of the port.
    pub port: u8,
    /// The source address of packets; always there on RoCE.
    pub gid: Option<GidEntry>,
}

impl PortSelector {
    /// All ports that fit and whose link is up, best first: those with the address `near`, then by
    /// NUMA node, by speed, and in the order of the devices.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] without any device; [`VerbsError::NoPort`] when none fits, with
    /// the reason for each.
    pub fn select(&self, devices: &[Device]) -> Result<Vec<PortSelection>, VerbsError> {
        if devices.is_empty() {
            return Err(VerbsError::NoDevice);
        }
        let mut fitting = Vec::new();
        let mut reasons = Vec::new();
        for (device, port) in
            devices.iter().flat_map(|device| device.ports.iter().map(move |port| (device, port)))
        {
            match self.fit(device, port) {
                Ok(gid) => fitting.push((device, port, gid)),
                Err(reason) => reasons.push(format!("{} port {}: {reason}", device.name, port.number)),
            }
        }
        if fitting.is_empty() {
            return Err(VerbsError::NoPort(reasons.join("; ")));
        }
        fitting.sort_by_key(|(device, port, gid)| {
            let near = gid.is_some_and(|entry| self.is_near(entry));
            let same_node = self.numa_node.is_some() && device.numa_node == self.numa_node;
            Reverse((near, same_node, port.speed))
        });
        let selection = |(device, port, gid): (&Device, &Port, Option<GidEntry>)| PortSelection {
            device: device.name.clone(),
            port: port.number,
            gid,
        };
        Ok(fitting.into_iter().map(selection).collect())
    }

    /// The address to use on this port, or why it does not fit.
    fn fit(&self, device: &Device, port: &Port) -> Result<Option<GidEntry>, &'static str> {
        if self.device.as_ref().is_some_and(|name| *name != device.name) {
            return Err("another device was asked for");
        }
        if self.port.is_some_and(|number| number != port.number) {
            return Err("another port was asked for");
        }
        if !port.active {
            return Err("the link is down");
        }
        let chosen = |index: u8| port.gids.iter().find(|entry| entry.index == index).copied();
        if let Some(index) = self.gid_index {
            let entry = chosen(index).ok_or("it has no GID of the index that was asked for")?;
            let usable = port.link == LinkLayer::InfiniBand || entry.kind == GidKind::RoceV2;
            return if usable { Ok(Some(entry)) } else { Err("the GID that was asked for is not RoCE v2") };
        }
        if port.link == LinkLayer::InfiniBand {
            return Ok(None);
        }
        let usable = port.gids.iter().filter(|entry| entry.kind == GidKind::RoceV2);
        let best = usable.max_by_key(|&&entry| {
            let routed = !entry.gid.is_link_local();
            (self.is_near(entry), routed, entry.gid.address().is_ipv4(), Reverse(entry.index))
        });
        best.copied().map(Some).ok_or("it has no RoCE v2 address")
    }

    fn is_near(&self, entry: GidEntry) -> bool {
        self.near.is_some_and(|address| Gid::from(address.to_canonical()) == entry.gid)
    }
}

/// The NUMA node of the processor that this thread runs on, where the machine has several.
pub fn current_numa_node() -> Option<u32> {
    let stat = fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The command's name, in parentheses, may contain any character. The processor is field 39,
    // the 37th after the last parenthesis.
    let processor: u32 = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(36)?.parse().ok()?;
    let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{processor}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::device::Mtu;
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> GidEntry {
        GidEntry { index, gid: Gid::from(address.parse::<IpAddr>().unwrap()), kind }
    }

    fn roce(name: &str, numa_node: u32, speed: u32, gids: Vec<GidEntry>) -> Device {
        let port = Port {
            number: 1,
            active: true,
            link: LinkLayer::Ethernet,
            speed,
            mtu: Mtu::from_code(5).unwrap(),
            max_message: 1 << 30,
            lid: 0,
            gids,
        };
        Device {
            name: name.to_owned(),
            firmware: String::new(),
            numa_node: Some(numa_node),
            max_reads: 16,
            max_served_reads: 16,
            ports: vec![port],
        }
    }

    fn usual(subnet: u8) -> Vec<GidEntry> {
        vec![
            gid(0, "fe80::1", GidKind::RoceV1),
            gid(1, "fe80::1", GidKind::RoceV2),
            gid(2, "fd00::1", GidKind::RoceV2),
            gid(3, &format!("10.{subnet}.0.1"), GidKind::RoceV1),
            gid(4, &format!("10.{subnet}.0.1"), GidKind::RoceV2),
        ]
    }

    fn first(selector: &PortSelector, devices: &[Device]) -> (String, u8) {
        let selection = selector.select(devices).unwrap().remove(0);
        (selection.device, selection.gid.unwrap().index)
    }

    #[test]
    fn the_address_comes_before_the_node_and_the_node_before_the_speed() {
        let devices = [
            roce("slow", 0, 25_000, usual(1)),
            roce("fast", 1, 100_000, usual(2)),
            roce("spare", 1, 100_000, usual(3)),
        ];
        let mut selector = PortSelector::default();
        assert_eq!(first(&selector, &devices), ("fast".to_owned(), 4));
        selector.numa_node = Some(0);
        assert_eq!(first(&selector, &devices), ("slow".to_owned(), 4));
        selector.near = Some("10.3.0.1".parse().unwrap());
        assert_eq!(first(&selector, &devices), ("spare".to_owned(), 4));
        selector.near = Some("::ffff:10.3.0.1".parse().unwrap());
        assert_eq!(first(&selector, &devices), ("spare".to_owned(), 4));
        // An address that no port has makes no difference.
        selector.near = Some("192.0.2.1".parse().unwrap());
        assert_eq!(first(&selector, &devices), ("slow".to_owned(), 4));
        assert_eq!(selector.select(&devices).unwrap().len(), 3);
    }

    #[test]
    fn a_named_device_or_address_is_taken_or_refused() {
        let mut devices = [roce("a", 0, 25_000, usual(1)), roce("b", 0, 25_000, usual(2))];
        let mut selector =
            PortSelector { device: Some("b".to_owned()), gid_index: Some(2), ..PortSelector::default() };
        assert_eq!(first(&selector, &devices), ("b".to_owned(), 2));
        selector.gid_index = Some(3);
        let reason = selector.select(&devices).unwrap_err().to_string();
        assert!(reason.contains("b port 1: the GID that was asked for is not RoCE v2"), "{reason}");
        devices[1].ports[0].active = false;
        let reason = selector.select(&devices).unwrap_err().to_string();
        assert!(reason.contains("b port 1: the link is down"), "{reason}");
        assert!(matches!(selector.select(&[]), Err(VerbsError::NoDevice)));
    }

    #[test]
    fn infiniband_needs_no_gid_and_link_local_is_the_last_resort() {
        let mut devices = [roce("ib", 0, 100_000, usual(1))];
        devices[0].ports[0].link = LinkLayer::InfiniBand;
        assert_eq!(PortSelector::default().select(&devices).unwrap()[0].gid, None);
        let lonely = [roce("a", 0, 25_000, usual(1)[..2].to_vec())];
        assert_eq!(first(&PortSelector::default(), &lonely), ("a".to_owned(), 1));
        let none = [roce("a", 0, 25_000, usual(1)[..1].to_vec())];
        assert!(PortSelector::default().select(&none).is_err());
    }

    #[test]
    fn the_processor_of_this_thread_is_found() {
        // A machine without NUMA has no node; otherwise the node is one of those that are online.
        if let Some(node) = current_numa_node() {
            assert!(fs::exists(format!("/sys/devices/system/node/node{node}")).unwrap());
        }
    }
}
