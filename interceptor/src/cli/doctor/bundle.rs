//! `--bundle`: an archive for a bug report, without secrets.
//!
//! The archive has no name until it is complete, so nothing of it is left when the program is
//! interrupted, and a file that has the name already stays as it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
use rustix::io::Errno;

use super::redaction::Redactor;

/// Bytes of one text in the archive, at most.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// The directory that the archive unpacks to.
const ROOT: &str = "interceptor-doctor";

/// A text of the archive.
pub(super) struct BundledText {
    /// The path in the archive.
    pub(super) name: String,
    pub(super) text: String,
}

impl BundledText {
    pub(super) fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// The content of a file, or why there is none.
    pub(super) fn of_file(name: &str, path: &str) -> Self {
        Self::new(name, fs::read_to_string(path).unwrap_or_else(|error| format!("{path}: {error}\n")))
    }
}

/// An archive that is being made. Only its user may read it.
pub(super) struct Bundle {
    file: File,
    path: PathBuf,
}

impl Bundle {
    /// An archive that will be at `path`.
    ///
    /// # Errors
    /// When something is there already, or the directory takes no files.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let is_free = fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        ensure!(is_free, "{shown} is there already, or cannot be reached: name another file with --bundle");
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(parent, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
            Errno::OPNOTSUPP | Errno::ISDIR => anyhow::anyhow!(
                "the file system of {} cannot keep a file without a name (O_TMPFILE), which {shown} is until it is \
                 complete: name a file elsewhere, as in /tmp",
                parent.display()
            ),
            errno => anyhow::Error::from(errno).context(format!("cannot write {shown}")),
        })?;
        Ok(Self { file: file.into(), path: path.to_owned() })
    }

    /// Writes what `redactor` leaves of the texts, and gives the archive its name. Returns the
    /// names of what is in it.
    ///
    /// # Errors
    /// When it cannot be written. Then there is no archive.
    pub(super) fn publish(self, texts: &[BundledText], redactor: &Redactor) -> anyhow::Result<Vec<String>> {
        let shown = self.path.display();
        let names = archive(&self.file, texts, redactor)
            .and_then(|names| self.file.sync_all().map(|()| names))
            .with_context(|| format!("cannot write {shown}"))?;
        // A name in /proc, because naming a descriptor itself takes a capability.
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, &unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)
            .with_context(|| format!("cannot give the archive the name {shown}"))?;
        Ok(names)
    }
}

fn archive(to: impl Write, texts: &[BundledText], redactor: &Redactor) -> io::Result<Vec<String>> {
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut names = Vec::new();
    for BundledText { name, text } in texts {
        let redacted = redactor.redact(text);
        // Cut afterwards: a part of a secret would not be recognized.
        let redacted = &redacted[..redacted.floor_char_boundary(MAX_TEXT_BYTES)];
        let name = format!("{ROOT}/{name}");
        let mut header = tar::Header::new_gnu();
        header.set_size(redacted.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, &name, redacted.as_bytes())?;
        names.push(name);
    }
    archive.into_inner()?.finish()?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use flate2::read::GzDecoder;

    use super::*;

    fn redactor() -> Redactor {
        Redactor::new(["the secret".to_owned()])
    }

    #[test]
    fn the_archive_is_its_users_and_has_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar.gz");
        let texts = [BundledText::new("a.txt", "it is the secret"), BundledText::new("b/c.json", "{}")];
        let bundle = Bundle::create(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "it has no name yet");
        let names = bundle.publish(&texts, &redactor()).unwrap();
        assert_eq!(names, ["interceptor-doctor/a.txt", "interceptor-doctor/b/c.json"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(&path).unwrap()));
        let mut text = String::new();
        archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "it is [redacted]");
    }

    #[test]
    fn what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar.gz");
        let bundle = Bundle::create(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(Bundle::create(&path).err().unwrap().to_string().contains("is there already"));
        // Also if it comes later.
        assert!(bundle.publish(&[], &redactor()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(Bundle::create(&directory.path().join("none/a.tar.gz")).is_err());
    }
}
