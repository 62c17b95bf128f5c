//! The sample data that `cargo xtask run` shows and reads: what people keep in a SeaweedFS, in small.
//!
//! One large random file, thousands of small ones, text that `weed` compresses by itself, deep directories, and the odd cases: an
//! empty file, names that need care, a symbolic link. The SHA-256 of every file is taken as it is written.

use std::io::{Read, Result as IoResult};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::mount::Mounted;
use crate::pattern::Pattern;
use crate::progress::Progress;
use crate::upload::{Stream, Uploader};
use crate::workplace::Workplace;

/// The directory of the filer that holds the sample.
pub(crate) const ROOT: &str = "/sample";

/// A symbolic link of the sample and its target.
pub(crate) const LINK: (&str, &str) = ("odd/link-to-large", "../large.bin");

/// A file that was written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// Relative to [`ROOT`].
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) sha256: [u8; 32],
}

/// What a file is made of.
enum Content {
    Random,
    Text,
}

struct Planned {
    path: String,
    size: u64,
    content: Content,
}

/// How much to write.
pub(crate) struct Sizes {
    /// Bytes of the large file.
    pub(crate) large: u64,
    /// Number of small files.
    pub(crate) small: usize,
}

/// Writes the sample; returns its files in the order of their names.
pub(crate) fn write(place: &mut Workplace, weed: &Path, filer: &str, sizes: &Sizes) -> Result<Vec<Written>> {
    let plan = plan(sizes);
    let progress = Progress::bytes("writing the sample data", plan.iter().map(|file| file.size).sum());
    let written = Mutex::new(Vec::with_capacity(plan.len()));
    Uploader::new(filer).each(&plan, |uploader, file| {
        let mut hash = Sha256::new();
        let mut seen = |part: &[u8]| {
            hash.update(part);
            progress.add(part.len() as u64);
        };
        let path = format!("{ROOT}/{}", file.path);
        match file.content {
            Content::Random => {
                uploader.put(&path, file.size, Stream::new(Pattern::of(&file.path), file.size, &mut seen))?;
            }
            Content::Text => {
                let text = text(&file.path, file.size);
                uploader.put(&path, file.size, Seen { bytes: &text, seen: &mut seen })?;
            }
        }
        let done = Written { path: file.path.clone(), size: file.size, sha256: hash.finalize().into() };
        written.lock().unwrap_or_else(|poison| poison.into_inner()).push(done);
        Ok(())
    })?;
    link(place, weed, filer)?;
    progress.finish();
    let mut written = written.into_inner().unwrap_or_else(|poison| poison.into_inner());
    written.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(written)
}

/// The filer's HTTP interface makes no links, so this one is made through a mount of `weed`.
fn link(place: &mut Workplace, weed: &Path, filer: &str) -> Result<()> {
    let mounted = Mounted::weed(place, weed, filer, ROOT)?;
    std::os::unix::fs::symlink(LINK.1, mounted.root.join(LINK.0))
        .context("cannot make a link through weed mount")?;
    mounted.unmount(place)
}

fn plan(sizes: &Sizes) -> Vec<Planned> {
    let random = |path: String, size| Planned { path, size, content: Content::Random };
    let text = |path: String, size| Planned { path, size, content: Content::Text };
    let mut plan = vec![random("large.bin".to_owned(), sizes.large)];
    for number in 0..sizes.small as u64 {
        let path = format!("small/d{:03}/f{number:05}.bin", number / 100);
        plan.push(random(path, (4 << 10) + number * 7919 % (124 << 10)));
    }
    for number in 0..60 {
        let kind = ["txt", "json", "csv", "html"][number as usize % 4];
        plan.push(text(format!("text/{kind}/part-{number:02}.{kind}"), 700 + number * number * 300));
    }
    let mut deep = "nested".to_owned();
    for level in 0..12 {
        deep.push_str(&format!("/level-{level:02}"));
        plan.push(random(format!("{deep}/leaf.bin"), 1000 + level));
    }
    // A file whose last chunk is one byte, and one that ends with its chunk.
    plan.push(random("odd/two-chunks-and-a-byte.bin".to_owned(), (8 << 20) + 1));
    plan.push(random("odd/exactly-one-chunk.bin".to_owned(), 4 << 20));
    plan.push(random("odd/empty".to_owned(), 0));
    for name in ["a name with blanks.bin", "grüße, 数据, данные.bin", "100% #1? & more=.bin", "🗂/ключ.bin"]
    {
        plan.push(random(format!("odd/{name}"), 5000));
    }
    plan
}

/// Text of `size` bytes that compresses well, another for each path.
fn text(path: &str, size: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(size as usize + 100);
    let mut line = 0;
    while (text.len() as u64) < size {
        text.extend_from_slice(
            format!("{path}: line {line} of a file that is mostly the same again and again\n").as_bytes(),
        );
        line += 1;
    }
    text.truncate(size as usize);
    text
}

/// Bytes in memory as a stream that somebody watches.
struct Seen<'a, F> {
    bytes: &'a [u8],
    seen: F,
}

impl<F: FnMut(&[u8])> Read for Seen<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        let count = self.bytes.read(buffer)?;
        (self.seen)(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_names_every_file_once() {
        let mut paths: Vec<String> =
            plan(&Sizes { large: 1 << 20, small: 250 }).into_iter().map(|file| file.path).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), count);
        assert!(count > 250 + 60 + 12);
    }

    #[test]
    fn text_has_its_size_and_differs_by_path() {
        assert_eq!(text("a", 1234).len(), 1234);
        assert_ne!(text("a", 1234), text("b", 1234));
        assert!(text("a", 0).is_empty());
    }
}
