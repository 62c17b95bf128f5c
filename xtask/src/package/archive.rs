//! tar archives: the one that stands for itself, and those within a deb.

use anyhow::Result;
use tar::{Builder, EntryType, Header};

use super::contents::{EntryContent, PackageContents, compressed};
use super::{NAME, PackageIdentity};

/// An archive in which everything lies below one directory that has the name of the version.
pub(super) fn package(contents: &PackageContents, identity: &PackageIdentity) -> Result<Vec<u8>> {
    compressed(&tree(contents, &format!("{NAME}-{}/", identity.version), identity.time)?)
}

/// The entries as an archive, each with `prefix` before its path.
pub(super) fn tree(contents: &PackageContents, prefix: &str, time: u64) -> Result<Vec<u8>> {
    let mut archive = Archive { builder: Builder::new(Vec::new()), time };
    archive.directory(prefix)?;
    for directory in contents.directories() {
        archive.directory(&format!("{prefix}{directory}/"))?;
    }
    for entry in contents.entries() {
        let path = format!("{prefix}{}", entry.path);
        match &entry.content {
            EntryContent::File { bytes, .. } => archive.file(&path, bytes, entry.mode())?,
            EntryContent::Link(target) => archive.link(&path, target)?,
        }
    }
    archive.finish()
}

/// Files without directories, such as the control files of a deb.
pub(super) fn files(files: &[(&str, Vec<u8>, u32)], time: u64) -> Result<Vec<u8>> {
    let mut archive = Archive { builder: Builder::new(Vec::new()), time };
    archive.directory("./")?;
    for (name, bytes, mode) in files {
        archive.file(&format!("./{name}"), bytes, *mode)?;
    }
    archive.finish()
}

struct Archive {
    builder: Builder<Vec<u8>>,
    time: u64,
}

impl Archive {
    fn header(&self, kind: EntryType, mode: u32, size: usize) -> Result<Header> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        Ok(header)
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = self.header(EntryType::Directory, 0o755, 0)?;
        Ok(self.builder.append_data(&mut header, path, &[][..])?)
    }

    fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut header = self.header(EntryType::Regular, mode, bytes.len())?;
        Ok(self.builder.append_data(&mut header, path, bytes)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = self.header(EntryType::Symlink, 0o777, 0)?;
        Ok(self.builder.append_link(&mut header, path, target)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.builder.into_inner()?)
    }
}
