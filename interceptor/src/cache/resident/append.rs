//! Appending to a resident file that is open.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::ResidentFiles;
use super::file::FileAppend;

/// Bytes that are being appended to an open file. If this is dropped before it is
/// [complete](Self::complete), the background thread cuts them off again.
pub struct ResidentAppend {
    /// None if the file is long enough already.
    pub(super) append: Option<FileAppend>,
    pub(super) residents: Arc<ResidentFiles>,
}

impl ResidentAppend {
    /// Writes `bytes` from `offset` on, behind what was written before, and returns them. None if
    /// that fails.
    pub async fn write<B>(self, bytes: B, offset: u64) -> Option<(Self, B)>
    where
        B: Deref<Target = [u8]> + Send + 'static,
    {
        let residents = self.residents.clone();
        let work = move || {
            let written = self.append.as_ref().map_or(Ok(()), |append| append.write_at(&bytes, offset));
            (self, bytes, written)
        };
        let (append, bytes, written) = residents.background.run(work).await?;
        written.inspect_err(|error| residents.counters.record_failure(bytes.len() as u64, error)).ok()?;
        Some((append, bytes))
    }

    /// Makes what was written a part of the file; what was not written is zeros. May block.
    ///
    /// # Errors
    /// When there is no memory for that.
    pub fn complete(mut self) -> io::Result<()> {
        self.append.take().map_or(Ok(()), FileAppend::finish)
    }
}

impl Drop for ResidentAppend {
    fn drop(&mut self) {
        if let Some(append) = self.append.take() {
            self.residents.background.spawn(|| drop(append));
        }
    }
}
