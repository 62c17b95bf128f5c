//! Addresses of SeaweedFS servers: `host:port`, or `host:port.grpcport` if the gRPC port is not
//! the HTTP port plus 10000.

use std::fmt;
use std::str::FromStr;

/// How far a server's gRPC port is above its HTTP port by default.
const GRPC_PORT_OFFSET: u16 = 10_000;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// Host name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// Port of the HTTP interface.
    pub http_port: u16,
    /// Port of the gRPC interface.
    pub grpc_port: u16,
}

/// Why a text is not a server's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    /// Not of one of the forms of an address.
    #[error("`{0}` is not an address: expected HOST:PORT, HOST:PORT.GRPCPORT or [IPV6]:PORT")]
    Shape(String),
    /// A port is not a number from 1 to 65535.
    #[error("`{0}`: a port is a number from 1 to 65535")]
    Port(String),
    /// The gRPC port would be above 65535.
    #[error("`{0}`: the gRPC port (HTTP port + 10000) would be above 65535; write HOST:PORT.GRPCPORT")]
    GrpcPort(String),
    /// The address asks for a lookup of SRV records.
    #[error("`{0}`: DNS SRV records (dnssrv+…) are not supported; list the servers as HOST:PORT,HOST:PORT")]
    ServiceRecord(String),
}

impl ServerAddress {
    /// The addresses of a list separated by commas, in its order. Spaces around them and empty
    /// parts are skipped. A list without any address is refused.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ParseAddressError> {
        let list = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let addresses = list.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(ParseAddressError::Shape(text.to_owned()));
        }
        Ok(addresses)
    }

    /// `host:port` of the gRPC interface.
    pub fn grpc_authority(&self) -> String {
        authority(&self.host, self.grpc_port)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl FromStr for ServerAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = || ParseAddressError::Shape(text.to_owned());
        if text.starts_with("dnssrv+") {
            return Err(ParseAddressError::ServiceRecord(text.to_owned()));
        }
        let (host, ports) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").filter(|(host, _)| host.contains(':')),
            None => text.split_once(':').filter(|(host, ports)| !host.contains('/') && !ports.contains(':')),
        }
        .ok_or_else(shape)?;
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '[' || c == ']') {
            return Err(shape());
        }
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(ParseAddressError::Port(text.to_owned())),
        };
        let (http_port, grpc_port) = match ports.split_once('.') {
            Some((http, grpc)) => (port(http)?, port(grpc)?),
            None => {
                let http = port(ports)?;
                let grpc = http.checked_add(GRPC_PORT_OFFSET);
                (http, grpc.ok_or_else(|| ParseAddressError::GrpcPort(text.to_owned()))?)
            }
        };
        Ok(Self { host: host.to_owned(), http_port, grpc_port })
    }
}

impl fmt::Display for ServerAddress {
    /// `host:port` of the HTTP interface, which is what SeaweedFS itself calls a server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.http_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(host: &str, http_port: u16, grpc_port: u16) -> ServerAddress {
        ServerAddress { host: host.into(), http_port, grpc_port }
    }

    #[test]
    fn all_forms_are_parsed() {
        assert_eq!("filer:8888".parse(), Ok(address("filer", 8888, 18888)));
        assert_eq!("10.0.0.1:8888.19000".parse(), Ok(address("10.0.0.1", 8888, 19000)));
        assert_eq!("[::1]:8888".parse(), Ok(address("::1", 8888, 18888)));
        assert_eq!("[::1]:8888.9".parse(), Ok(address("::1", 8888, 9)));
        assert_eq!(address("::1", 8888, 18888).to_string(), "[::1]:8888");
        assert_eq!(address("::1", 8888, 18888).grpc_authority(), "[::1]:18888");
        assert_eq!("filer:60000.1".parse(), Ok(address("filer", 60000, 1)));
    }

    #[test]
    fn other_texts_are_refused() {
        use ParseAddressError::*;
        for text in
            ["", "filer", ":8888", "::1:8888", "http://filer:8888", "[::1]", "[filer]:8888", "a b:8888"]
        {
            assert_eq!(text.parse::<ServerAddress>(), Err(Shape(text.into())), "{text:?}");
        }
        for text in
            ["filer:", "filer:0", "filer:65536", "filer:+1", "filer:8888.", "filer:8888.x", "filer:1.2.3"]
        {
            assert_eq!(text.parse::<ServerAddress>(), Err(Port(text.into())), "{text:?}");
        }
        assert_eq!("filer:55536".parse::<ServerAddress>(), Err(GrpcPort("filer:55536".into())));
        let record = "dnssrv+_grpc._tcp.filer";
        assert_eq!(record.parse::<ServerAddress>(), Err(ServiceRecord(record.into())));
    }

    #[test]
    fn lists_are_split_at_commas() {
        let both = vec![address("a", 1, 10001), address("b", 2, 10002)];
        assert_eq!(ServerAddress::parse_list("a:1, b:2,"), Ok(both));
        assert!(ServerAddress::parse_list(" , ").is_err());
        assert!(ServerAddress::parse_list("a:1,b").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*") {
            if let Ok(parsed) = text.parse::<ServerAddress>() {
                prop_assert_eq!(parsed.to_string().parse::<ServerAddress>().map(|a| a.host).ok(), Some(parsed.host))
            }
        }
    }
}
