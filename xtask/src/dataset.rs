//! The sample data of `cargo xtask run`: a small picture of what people keep in SeaweedFS.
//!
//! One large random file, thousands of small ones, text that `weed` compresses by itself, deep
//! directories, and edge cases: an empty file, names that need escapes, a symbolic link. The
//! SHA-256 of every file is computed as it is written.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use ::tests::Pattern;
use ::tests::data::text;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::progress::Progress;
use crate::stage::{CACHE_MIB, Stage};
use crate::upload::{self, TappedReader};

/// The directory of the filer that holds the sample.
pub(crate) const ROOT: &str = "/sample";

/// A symbolic link of the sample and its target.
pub(crate) const LINK: (&str, &str) = ("odd/link-to-large", "../large.bin");

/// A file that was written.
#[derive(Debug, Clone)]
pub(crate) struct SampleFile {
    /// Relative to [`ROOT`].
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Of its bytes, in hex.
    pub(crate) sha256: String,
}

/// What a file is made of.
enum Content {
    Random,
    Text,
}

struct PlannedFile {
    path: String,
    size: u64,
    content: Content,
}

/// How much to write.
pub(crate) struct SampleSizes {
    /// Bytes of the large file.
    pub(crate) large: u64,
    /// Number of small files.
    pub(crate) small: usize,
}

/// Writes the sample; returns its files in the order of their names.
pub(crate) fn write(stage: &mut Stage, sizes: &SampleSizes) -> Result<Vec<SampleFile>> {
    let plan: Vec<(u64, PlannedFile)> = (0..).zip(plan(sizes)).collect();
    let filer = stage.cluster.filer();
    let progress = Progress::bytes("writing the sample data", plan.iter().map(|(_, file)| file.size).sum());
    let written = Mutex::new(Vec::with_capacity(plan.len()));
    upload::each(&plan, |(seed, file)| {
        let mut hash = Sha256::new();
        let inner: Box<dyn Read> = match file.content {
            Content::Random => Box::new(Pattern::new(*seed).reader(file.size)),
            Content::Text => Box::new(std::io::Cursor::new(text(*seed, file.size as usize))),
        };
        let seen = |part: &[u8]| {
            hash.update(part);
            progress.add(part.len() as u64);
        };
        filer.put_reader(&format!("{ROOT}/{}", file.path), TappedReader { inner, seen }, "")?;
        let done =
            SampleFile { path: file.path.clone(), size: file.size, sha256: format!("{:x}", hash.finalize()) };
        written.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        Ok(())
    })?;
    link(stage)?;
    progress.finish();
    let mut written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
    written.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(written)
}

/// The filer's HTTP interface makes no links, so this one is made through a mount of `weed`.
fn link(stage: &mut Stage) -> Result<()> {
    let mount = stage.weed(ROOT, CACHE_MIB, &[])?;
    let made = std::os::unix::fs::symlink(LINK.1, mount.path().join(LINK.0));
    made.context("cannot make a link through weed mount")?;
    mount.stop().map(drop)
}

fn plan(sizes: &SampleSizes) -> Vec<PlannedFile> {
    let random = |path: String, size| PlannedFile { path, size, content: Content::Random };
    let text = |path: String, size| PlannedFile { path, size, content: Content::Text };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_names_every_file_once() {
        let mut paths: Vec<String> =
            plan(&SampleSizes { large: 1 << 20, small: 250 }).into_iter().map(|file| file.path).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), count);
        assert!(count > 250 + 60 + 12);
    }
}
