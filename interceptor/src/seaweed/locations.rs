//! Where volumes are.

/// A volume server that holds a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// `host:port` for use within the cluster.
    pub url: String,
    /// `host:port` for use from elsewhere.
    pub public_url: String,
    /// Its data center, empty if unknown.
    pub data_center: String,
    /// Its gRPC port; 0 means the HTTP port plus 10000.
    pub grpc_port: u32,
}
