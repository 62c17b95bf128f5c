//! Maps owners of files. SeaweedFS keeps numeric ids, which need not mean the same user or group
//! on this host.

use std::collections::HashMap;
use std::str::FromStr;

/// Maps ids of the filer to ids of this host. Ids without a mapping stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    local: HashMap<u32, u32>,
}

/// A text is no id map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdMapError {
    /// A part of it is not `LOCAL:FILER`.
    #[error("`{0}` does not map an id: expected LOCAL:FILER, two numbers")]
    NoPair(String),
    /// An id of the filer would have two ids here.
    #[error("it maps the filer's id {0} to more than one id")]
    Ambiguous(u32),
}

impl IdMap {
    /// The id on this host of a filer's id.
    pub fn local(&self, filer: u32) -> u32 {
        self.local.get(&filer).copied().unwrap_or(filer)
    }
}

impl FromStr for IdMap {
    type Err = ParseIdMapError;

    /// Reads `LOCAL:FILER,LOCAL:FILER…`, as `weed mount -map.uid` does; an empty text maps
    /// nothing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut local = HashMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let ids = pair.split_once(':').and_then(|(l, f)| Some((l.parse().ok()?, f.parse().ok()?)));
            let (here, filer) = ids.ok_or_else(|| ParseIdMapError::NoPair(pair.to_owned()))?;
            if local.insert(filer, here).is_some_and(|other| other != here) {
                return Err(ParseIdMapError::Ambiguous(filer));
            }
        }
        Ok(Self { local })
    }
}

/// Maps the users and groups of the filer to those of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnerMaps {
    /// Map of user ids.
    pub users: IdMap,
    /// Map of group ids.
    pub groups: IdMap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_is_the_filers() {
        let map: IdMap = "1000:0, 7:8".parse().unwrap();
        assert_eq!((map.local(0), map.local(8), map.local(1000)), (1000, 7, 1000));
        assert_eq!("".parse(), Ok(IdMap::default()));
    }

    #[test]
    fn malformed_pairs_are_named() {
        for text in ["1", "1:", ":1", "a:1", "1:-1", "1:2:3", "4294967296:1"] {
            assert_eq!(format!("0:0,{text}").parse::<IdMap>(), Err(ParseIdMapError::NoPair(text.into())));
        }
        assert_eq!("1:5,2:5".parse::<IdMap>(), Err(ParseIdMapError::Ambiguous(5)));
        assert!("1:5,1:5,1:6".parse::<IdMap>().is_ok());
    }
}
