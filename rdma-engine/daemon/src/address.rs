//! Addresses to listen at, as they are typed: `127.0.0.1:9650`, `localhost:0`, `[::]:18515`.

use std::str::FromStr;

/// Checks the form of `HOST:PORT`. Whether the host exists shows when the address is used.
///
/// # Errors
/// When there is no host or no port; the text says what is expected.
pub fn host_port(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected HOST:PORT, such as 127.0.0.1:9650, localhost:9650 or [::]:9650";
    let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let is_address =
        !host.is_empty() && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
    if is_address && port.parse::<u16>().is_ok() { Ok(text.to_owned()) } else { Err(EXPECTED) }
}

/// Where a status API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusAddress {
    /// Nowhere.
    Nowhere,
    /// On this `host:port`.
    At(String),
}

impl FromStr for StatusAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        host_port(text).map(Self::At).map_err(|_| "expected HOST:PORT, such as 127.0.0.1:9650, or none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("none".parse(), Ok(StatusAddress::Nowhere));
        for right in ["[::1]:0", "localhost:9650", "0.0.0.0:18515"] {
            assert_eq!(right.parse(), Ok(StatusAddress::At(right.into())));
            assert_eq!(host_port(right).as_deref(), Ok(right));
        }
        for wrong in ["9650", ":9650", "localhost", "localhost:http", "localhost:70000", "::1:9650", ""] {
            assert!(wrong.parse::<StatusAddress>().is_err() && host_port(wrong).is_err(), "{wrong}");
        }
    }
}
