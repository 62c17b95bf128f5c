//! Lists the volumes of the data directories, and the names of their files.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A directory that was modified within this time before it is listed may change again without a
/// new modification time: the clock of file systems ticks every few milliseconds.
const MIN_MTIME_AGE: Duration = Duration::from_millis(50);

/// The names of one volume's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeFiles {
    /// Directory and base name in the data directory; the base is `ID` or `COLLECTION_ID`.
    data: PathBuf,
    /// The same in the directory of indexes.
    index: Option<PathBuf>,
    /// Whether another data directory has a volume of the same number.
    pub(super) ambiguous: bool,
}

impl VolumeFiles {
    /// A file of the data directory by its extension.
    pub(super) fn data(&self, extension: &str) -> PathBuf {
        with_extension(&self.data, extension)
    }

    /// A file of the index directory by its extension. Without such a directory, or if the file is
    /// in the data directory, that one.
    pub(super) fn index(&self, extension: &str) -> PathBuf {
        let beside = self.data(extension);
        match &self.index {
            Some(index) if !beside.exists() => with_extension(index, extension),
            _ => beside,
        }
    }
}

fn with_extension(base: &Path, extension: &str) -> PathBuf {
    // Not `Path::with_extension`: a collection may have dots in its name.
    let mut path = base.as_os_str().to_owned();
    path.push(extension);
    path.into()
}

/// The data directories of one volume server.
#[derive(Debug)]
pub(super) struct Directories {
    data: Vec<PathBuf>,
    index: Option<PathBuf>,
}

/// The content of the directories at one time.
#[derive(Debug, Default)]
pub(super) struct DirectoryListing {
    pub(super) volumes: HashMap<u32, VolumeFiles>,
    /// The modification time of each directory; none if it has to be listed again anyway.
    modified: Vec<Option<SystemTime>>,
}

impl Directories {
    pub(super) fn new(data: Vec<PathBuf>, index: Option<PathBuf>) -> Self {
        Self { data, index }
    }

    /// Lists all directories.
    pub(super) fn list(&self) -> io::Result<DirectoryListing> {
        let mut listing = DirectoryListing::default();
        for directory in &self.data {
            let modified = directory.metadata()?.modified()?;
            let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > MIN_MTIME_AGE);
            listing.modified.push(settled.then_some(modified));
            for entry in directory.read_dir()? {
                let name = entry?.file_name();
                let Some((id, base)) = name.to_str().and_then(volume_of) else { continue };
                let files = VolumeFiles {
                    data: directory.join(base),
                    index: self.index.as_ref().map(|index| index.join(base)),
                    ambiguous: false,
                };
                listing
                    .volumes
                    .entry(id)
                    .and_modify(|known| known.ambiguous |= known.data != files.data)
                    .or_insert(files);
            }
        }
        Ok(listing)
    }

    /// Whether listing again may show something new.
    pub(super) fn changed_since(&self, listing: &DirectoryListing) -> bool {
        let now = self.data.iter().map(|directory| directory.metadata().and_then(|m| m.modified()).ok());
        listing.modified.iter().any(Option::is_none) || !now.eq(listing.modified.iter().copied())
    }
}

/// The number and base name of the volume that a file belongs to, if its name is that of a file by
/// which a volume is found.
fn volume_of(name: &str) -> Option<(u32, &str)> {
    let (base, extension) = name.rsplit_once('.')?;
    if !matches!(extension, "dat" | "vif" | "ecx") {
        return None;
    }
    let number = base.rsplit_once('_').map_or(base, |(_collection, number)| number);
    let id = number.parse().ok().filter(|&id| id > 0 && number.bytes().all(|b| b.is_ascii_digit()))?;
    Some((id, base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_of_volumes() {
        assert_eq!(volume_of("7.dat"), Some((7, "7")));
        assert_eq!(volume_of("my_pictures_12.vif"), Some((12, "my_pictures_12")));
        assert_eq!(volume_of("v1.5_3.ecx"), Some((3, "v1.5_3")));
        for other in
            ["7.idx", "7.cpd", "x.dat", "0.dat", "+7.dat", "4294967296.dat", "7.ec00", "dat", "_.dat"]
        {
            assert_eq!(volume_of(other), None, "{other}");
        }
    }

    #[test]
    fn new_volumes_are_found_and_two_of_one_number_are_ambiguous() {
        let (a, b, index) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(a.path().join("c_1.dat"), "").unwrap();
        let directories =
            Directories::new(vec![a.path().into(), b.path().into()], Some(index.path().to_owned()));
        let listing = directories.list().unwrap();
        assert!(!listing.volumes[&1].ambiguous);
        assert_eq!(listing.volumes[&1].index(".idx"), index.path().join("c_1.idx"));
        fs::write(a.path().join("c_1.idx"), "").unwrap();
        assert_eq!(listing.volumes[&1].index(".idx"), a.path().join("c_1.idx"));
        fs::write(b.path().join("1.dat"), "").unwrap();
        assert!(directories.changed_since(&listing));
        assert!(directories.list().unwrap().volumes[&1].ambiguous);
    }
}
