//! The RDMA devices of this host, as plain data to print and to choose from.

use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use ibverbs_sys::{self as ffi, ibv_port_state};

use super::VerbsError;
use super::library::functions;

/// One device and its ports.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its name in the kernel, such as `mlx5_0`.
    pub name: String,
    /// Version of its firmware; empty for devices in software.
    pub firmware: String,
    /// The NUMA node that it is attached to, where the kernel knows.
    pub numa_node: Option<u32>,
    /// The most RDMA READs that one queue pair can have in flight; more wait in its send queue.
    pub max_reads: u8,
    /// The most RDMA READs of a peer that one queue pair can answer at once.
    pub max_served_reads: u8,
    /// Its ports, numbered from 1.
    pub ports: Vec<Port>,
}

/// One port of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its number.
    pub number: u8,
    /// Whether the link is up.
    pub active: bool,
    /// The kind of its network.
    pub link: LinkLayer,
    /// Speed of the link, Mbit/s.
    pub speed: u32,
    /// The most bytes of payload in a packet.
    pub mtu: Mtu,
    /// The most bytes of a message.
    pub max_message: u32,
    /// Its address on an InfiniBand fabric; 0 on Ethernet.
    pub lid: u16,
    /// Its addresses.
    pub gids: Vec<GidEntry>,
}

/// The kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand: peers are reached by LID.
    InfiniBand,
    /// Ethernet: RoCE, peers are reached by GID.
    Ethernet,
}

/// An entry of a port's GID table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GidEntry {
    /// Its index in the table.
    pub index: u8,
    /// The address.
    pub gid: Gid,
    /// The format of packets from this address.
    pub kind: GidKind,
}

/// The format of packets from an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE version 1, which is not routed and not used here.
    RoceV1,
    /// RoCE version 2: UDP over IPv4 or IPv6.
    RoceV2,
}

/// A global address, in network byte order. On RoCE v2 it is an IPv6 address, or an IPv4 address
/// mapped to IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The IP address in it.
    pub fn address(&self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// Whether it is valid on one link only (`fe80::/10`).
    pub fn is_link_local(&self) -> bool {
        Ipv6Addr::from(self.0).is_unicast_link_local()
    }
}

impl From<IpAddr> for Gid {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        })
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// Bytes of payload in a packet: one of the five sizes of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtu(u8);

impl Mtu {
    /// From the number that stands for it in verbs and on the wire, 1 to 5.
    pub fn from_code(code: u8) -> Option<Self> {
        (1..=5).contains(&code).then_some(Self(code))
    }

    /// The number that stands for it in verbs and on the wire, 1 to 5.
    pub fn code(self) -> u8 {
        self.0
    }

    /// From its bytes, 256 to 4096.
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        (1..=5).map(Self).find(|mtu| mtu.bytes() == bytes)
    }

    /// Bytes: 256 to 4096.
    pub fn bytes(self) -> u32 {
        128 << self.0
    }
}

/// Calls `take` for every device until it returns a value. The pointers are valid during the call
/// only.
pub(super) fn each<T>(
    mut take: impl FnMut(*mut ffi::ibv_device, &str) -> Option<T>,
) -> Result<Option<T>, VerbsError> {
    let functions = functions()?;
    let mut count = 0;
    // SAFETY: the count is written to a local variable.
    let list = unsafe { (functions.ibv_get_device_list)(&mut count) };
    if list.is_null() {
        let error = std::io::Error::last_os_error();
        // The answer of a kernel without RDMA.
        if error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) {
            return Ok(None);
        }
        return Err(VerbsError::Call { call: "ibv_get_device_list", source: error });
    }
    let mut taken = None;
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` devices, whose names are C strings that live as long as the
        // list.
        let (device, name) = unsafe {
            let device = *list.add(index);
            (device, CStr::from_ptr((functions.ibv_get_device_name)(device)))
        };
        taken = take(device, &name.to_string_lossy());
        if taken.is_some() {
            break;
        }
    }
    // SAFETY: the list is freed once, and no pointer into it is kept.
    unsafe { (functions.ibv_free_device_list)(list) };
    Ok(taken)
}

/// Queries the device behind `context`.
pub(super) fn describe(context: *mut ffi::ibv_context, name: &str) -> Result<Device, VerbsError> {
    let functions = functions()?;
    let mut attributes = ffi::ibv_device_attr::default();
    // SAFETY: the caller has the context open; the attributes are a local of the library's type.
    let returned = unsafe { (functions.ibv_query_device)(context, &mut attributes) };
    VerbsError::check("ibv_query_device", returned)?;
    let small = |number: i32| u8::try_from(number.max(1)).unwrap_or(u8::MAX);
    let gids = gids(context)?;
    let ports = (1..=attributes.phys_port_cnt).map(|number| {
        let own = gids.iter().filter(|(port, _)| *port == u32::from(number));
        describe_port(context, number, own.map(|&(_, entry)| entry).collect())
    });
    // SAFETY: the library ends the text with a zero within the array, which was zeroed before.
    let firmware = unsafe { CStr::from_ptr(attributes.fw_ver.as_ptr()) };
    Ok(Device {
        name: name.to_owned(),
        firmware: firmware.to_string_lossy().into_owned(),
        numa_node: numa_node(name),
        max_reads: small(attributes.max_qp_init_rd_atom),
        max_served_reads: small(attributes.max_qp_rd_atom),
        ports: ports.collect::<Result<_, _>>()?,
    })
}

/// The most GIDs of a device that are read; devices with more have them for virtual machines.
const MAX_GIDS: usize = 1024;

/// The addresses of all ports, each with the number of its port.
fn gids(context: *mut ffi::ibv_context) -> Result<Vec<(u32, GidEntry)>, VerbsError> {
    let functions = functions()?;
    let mut entries = vec![ffi::ibv_gid_entry::default(); MAX_GIDS];
    // SAFETY: the context is open; the entries are a local array, whose number and size are
    // passed.
    let count = unsafe {
        let size = size_of::<ffi::ibv_gid_entry>();
        (functions._ibv_query_gid_table)(context, entries.as_mut_ptr(), entries.len(), 0, size)
    };
    let count = match usize::try_from(count) {
        Ok(count) => count,
        Err(_) => {
            let number = i32::try_from(count.unsigned_abs()).unwrap_or_default();
            return VerbsError::check("ibv_query_gid_table", number).map(|()| Vec::new());
        }
    };
    let known = entries[..count].iter().filter_map(|entry| {
        let kind = match entry.gid_type {
            ffi::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
            ffi::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
            _ => GidKind::InfiniBand,
        };
        // SAFETY: both members of the union are 16 bytes without padding.
        let gid = Gid(unsafe { entry.gid.raw });
        Some((entry.port_num, GidEntry { index: u8::try_from(entry.gid_index).ok()?, gid, kind }))
    });
    Ok(known.collect())
}

fn describe_port(
    context: *mut ffi::ibv_context,
    number: u8,
    gids: Vec<GidEntry>,
) -> Result<Port, VerbsError> {
    let functions = functions()?;
    let mut attributes = ffi::ibv_port_attr::default();
    // SAFETY: the context is open; the function fills the beginning of `ibv_port_attr`, which has
    // been the same in every version of the library since 1.1.
    let returned = unsafe { (functions.ibv_query_port)(context, number, (&raw mut attributes).cast()) };
    VerbsError::check("ibv_query_port", returned)?;
    let ethernet = u32::from(attributes.link_layer) == ffi::IBV_LINK_LAYER_ETHERNET;
    let mtu = u8::try_from(attributes.active_mtu).ok().and_then(Mtu::from_code);
    Ok(Port {
        number,
        active: attributes.state == ibv_port_state::IBV_PORT_ACTIVE,
        link: if ethernet { LinkLayer::Ethernet } else { LinkLayer::InfiniBand },
        speed: lanes(attributes.active_width) * lane_speed(attributes.active_speed),
        mtu: mtu.unwrap_or(Mtu(1)),
        max_message: attributes.max_msg_sz,
        lid: attributes.lid,
        gids,
    })
}

/// `active_width` of a port (InfiniBand Architecture, PortInfo.LinkWidthActive).
fn lanes(width: u8) -> u32 {
    match width {
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 1,
    }
}

/// `active_speed` of a port in Mbit/s a lane (PortInfo.LinkSpeedActive and LinkSpeedExtActive).
fn lane_speed(speed: u8) -> u32 {
    match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    }
}

fn numa_node(device: &str) -> Option<u32> {
    // -1 on a machine without NUMA.
    fs::read_to_string(format!("/sys/class/infiniband/{device}/device/numa_node")).ok()?.trim().parse().ok()
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if !self.firmware.is_empty() {
            write!(f, ", firmware {}", self.firmware)?;
        }
        if let Some(node) = self.numa_node {
            write!(f, ", NUMA node {node}")?;
        }
        write!(f, ", {} reads at once, {} served at once", self.max_reads, self.max_served_reads)?;
        self.ports.iter().try_for_each(|port| write!(f, "\n  {port}"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = match self.link {
            LinkLayer::InfiniBand => "InfiniBand",
            LinkLayer::Ethernet => "Ethernet",
        };
        let state = if self.active { "up" } else { "down" };
        let gigabits = f64::from(self.speed) / 1000.0;
        write!(f, "port {}: {link}, {state}, {gigabits} Gbit/s, MTU {}", self.number, self.mtu.bytes())?;
        if self.link == LinkLayer::InfiniBand {
            write!(f, ", LID {}", self.lid)?;
        }
        self.gids.iter().try_for_each(|entry| write!(f, "\n    {entry}"))
    }
}

impl fmt::Display for GidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            GidKind::InfiniBand => "InfiniBand",
            GidKind::RoceV1 => "RoCE v1",
            GidKind::RoceV2 => "RoCE v2",
        };
        write!(f, "GID {}: {} ({kind})", self.index, self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_is_an_ip_address() {
        for text in ["10.9.0.1", "fd09::1", "fe80::1"] {
            let address: IpAddr = text.parse().unwrap();
            let gid = Gid::from(address);
            assert_eq!((gid.address(), gid.to_string().as_str()), (address, text));
            assert_eq!(gid.is_link_local(), text.starts_with("fe80"));
        }
    }

    #[test]
    fn the_codes_of_mtu_and_speed_are_those_of_the_specification() {
        let bytes: Vec<u32> = (0..=6).filter_map(Mtu::from_code).map(Mtu::bytes).collect();
        assert_eq!(bytes, [256, 512, 1024, 2048, 4096]);
        // 4X NDR, 1X SDR
        assert_eq!((lanes(2) * lane_speed(128), lanes(1) * lane_speed(1)), (400_000, 2_500));
    }
}
