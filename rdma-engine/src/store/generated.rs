//! Volumes written by the tests, the way a volume server writes them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::entry::OffsetWidth;
use crate::checksum;
use crate::needle::{Header, Version};

/// A writer of one volume.
pub(crate) struct GeneratedVolume {
    directory: PathBuf,
    id: u32,
    pub(crate) version: Version,
    pub(crate) width: OffsetWidth,
    /// Store checksums as SeaweedFS before 3.09 did.
    pub(crate) legacy: bool,
    dat: File,
    idx: File,
    revision: u16,
}

/// The parts of a record that a test may choose.
#[derive(Clone, Default)]
pub(crate) struct RecordParts {
    pub(crate) flags: u8,
    pub(crate) optional: Vec<u8>,
    pub(crate) append_at_ns: u64,
}

impl GeneratedVolume {
    pub(crate) fn new(directory: &Path, id: u32, version: Version, width: OffsetWidth) -> Self {
        let open = |extension: &str| {
            let path = directory.join(format!("{id}.{extension}"));
            OpenOptions::new().create_new(true).append(true).open(path).unwrap()
        };
        let (mut dat, idx) = (open("dat"), open("idx"));
        dat.write_all(&superblock(version, 0)).unwrap();
        Self { directory: directory.into(), id, version, width, legacy: false, dat, idx, revision: 0 }
    }

    pub(crate) fn path(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.id))
    }

    /// Writes a `.vif` with the width of the offsets.
    pub(crate) fn write_width(&self) {
        let width = self.width.entry_length() - 12;
        fs::write(self.path("vif"), format!("{{\"files\":[],\"version\":3,\"bytesOffset\":{width}}}"))
            .unwrap();
    }

    pub(crate) fn put(&mut self, key: u64, cookie: u32, data: &[u8]) {
        self.put_with(key, cookie, data, &RecordParts::default());
    }

    pub(crate) fn put_with(&mut self, key: u64, cookie: u32, data: &[u8], parts: &RecordParts) {
        let at = self.dat.metadata().unwrap().len();
        let (record, size) = record(self.version, key, cookie, data, parts, self.legacy);
        self.dat.write_all(&record).unwrap();
        self.log(key, at / 8, size);
    }

    pub(crate) fn delete(&mut self, key: u64, cookie: u32) {
        let at = self.dat.metadata().unwrap().len();
        let (record, _) = record(self.version, key, cookie, &[], &RecordParts::default(), false);
        self.dat.write_all(&record).unwrap();
        self.log(key, at / 8, -1);
    }

    /// Appends an entry to the index.
    pub(crate) fn log(&mut self, key: u64, units: u64, size: i32) {
        let mut entry = key.to_be_bytes().to_vec();
        entry.extend_from_slice(&u32::try_from(units & 0xffff_ffff).unwrap().to_be_bytes());
        if self.width == OffsetWidth::Five {
            entry.push(u8::try_from(units >> 32).unwrap());
        }
        entry.extend_from_slice(&size.to_be_bytes());
        self.idx.write_all(&entry).unwrap();
    }

    /// Writes the compacted files with these needles (key, cookie, data).
    /// [`swap_data`](Self::swap_data) and [`swap_index`](Self::swap_index) put them in place.
    pub(crate) fn compact(&mut self, needles: &[(u64, u32, Vec<u8>)]) -> Compacted {
        let other = tempfile::tempdir_in(&self.directory).unwrap();
        let mut new = Self::new(other.path(), self.id, self.version, self.width);
        for (key, cookie, data) in needles {
            new.put(*key, *cookie, data);
        }
        let revision = self.revision + 1;
        let (cpd, cpx) = (self.path("cpd"), self.path("cpx"));
        let mut bytes = fs::read(new.path("dat")).unwrap();
        bytes[..8].copy_from_slice(&superblock(self.version, revision));
        fs::write(&cpd, bytes).unwrap();
        fs::copy(new.path("idx"), &cpx).unwrap();
        Compacted { revision }
    }

    /// The first of the two renames, under the marker.
    pub(crate) fn swap_data(&mut self) {
        fs::write(self.path("cpc"), "").unwrap();
        fs::rename(self.path("cpd"), self.path("dat")).unwrap();
    }

    /// The second rename. Later writes go to the new files.
    pub(crate) fn swap_index(&mut self, compacted: Compacted) {
        fs::rename(self.path("cpx"), self.path("idx")).unwrap();
        fs::remove_file(self.path("cpc")).unwrap();
        self.dat = OpenOptions::new().append(true).open(self.path("dat")).unwrap();
        self.idx = OpenOptions::new().append(true).open(self.path("idx")).unwrap();
        self.revision = compacted.revision;
    }
}

/// The files that [`GeneratedVolume::compact`] wrote.
pub(crate) struct Compacted {
    revision: u16,
}

fn superblock(version: Version, revision: u16) -> [u8; 8] {
    let version = match version {
        Version::V1 => 1,
        Version::V2 => 2,
        Version::V3 => 3,
    };
    let [r0, r1] = revision.to_be_bytes();
    [version, 0, 0, 0, r0, r1, 0, 0]
}

/// The bytes of a record, and the size in its header.
pub(crate) fn record(
    version: Version,
    key: u64,
    cookie: u32,
    data: &[u8],
    parts: &RecordParts,
    legacy: bool,
) -> (Vec<u8>, i32) {
    let mut body = Vec::new();
    if version == Version::V1 {
        body.extend_from_slice(data);
    } else if !data.is_empty() {
        body.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        body.extend_from_slice(data);
        body.push(parts.flags);
        body.extend_from_slice(&parts.optional);
    }
    let size = i32::try_from(body.len()).unwrap();
    let mut record = Header { cookie, key, size }.to_bytes().to_vec();
    record.extend_from_slice(&body);
    let crc = checksum::crc32c(data);
    record.extend_from_slice(&if legacy { checksum::legacy(crc) } else { crc }.to_be_bytes());
    if version == Version::V3 {
        record.extend_from_slice(&parts.append_at_ns.to_be_bytes());
    }
    record.resize(usize::try_from(version.record_length(size.cast_unsigned())).unwrap(), 0xa5);
    (record, size)
}
