//! The `.vif` file: a volume server's description of a volume, in protobuf's JSON.

use serde_json::{Map, Value};

use super::entry::OffsetWidth;

/// The parts of a `.vif` that are needed for reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The width of the index's offsets, if it is given.
    pub offset_width: Option<OffsetWidth>,
    /// Whether the volume's data was moved to a remote tier.
    pub is_remote: bool,
}

impl VolumeInfo {
    /// Parses a `.vif`, which may be empty.
    ///
    /// # Errors
    /// When it is not the JSON that protobuf writes; the text says where.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let document: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let width = match document.get("bytesOffset").or_else(|| document.get("BytesOffset")) {
            // Protobuf's JSON may write numbers as text.
            None | Some(Value::Null) => 0,
            Some(Value::String(text)) => text.parse().map_err(|_| format!("bytesOffset is {text:?}"))?,
            Some(value) => value.as_u64().ok_or_else(|| format!("bytesOffset is {value}"))?,
        };
        let offset_width = match width {
            0 => None,
            4 => Some(OffsetWidth::Four),
            5 => Some(OffsetWidth::Five),
            other => return Err(format!("offsets of {other} bytes")),
        };
        let is_remote = match document.get("files") {
            None | Some(Value::Null) => false,
            Some(Value::Array(files)) => !files.is_empty(),
            Some(other) => return Err(format!("files is {other}")),
        };
        Ok(Self { offset_width, is_remote })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vif_of_weed_is_parsed() {
        let text =
            br#"{"files": [], "version": 3, "replication": "000", "bytesOffset": 4, "datFileSize": "0",
            "expireAtSec": "0", "readOnly": false}"#;
        let expected = VolumeInfo { offset_width: Some(OffsetWidth::Four), is_remote: false };
        assert_eq!(VolumeInfo::parse(text), Ok(expected));
        assert_eq!(VolumeInfo::parse(b" \n"), Ok(VolumeInfo::default()));
        assert_eq!(VolumeInfo::parse(b"{\"bytesOffset\":0}"), Ok(VolumeInfo::default()));
        let old = VolumeInfo::parse(b"{\"BytesOffset\":\"5\"}").unwrap();
        assert_eq!(old.offset_width, Some(OffsetWidth::Five));
    }

    #[test]
    fn a_tiered_volume_is_remote() {
        let text = br#"{"files":[{"backendType":"s3","key":"x"}],"version":3}"#;
        assert!(VolumeInfo::parse(text).unwrap().is_remote);
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["x", "[]", "{\"bytesOffset\":6}", "{\"bytesOffset\":\"x\"}", "{\"files\":3}"] {
            assert!(VolumeInfo::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
