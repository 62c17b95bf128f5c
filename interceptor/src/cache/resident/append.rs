//! Bytes on their way to the end of a file that is open.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::Residents;
use super::file::Addition;

/// What is being appended to a file that is open. Dropped before it is [complete](Self::complete), all is soon as it was before.
pub struct Extension {
    /// None if the file has it all.
    pub(super) addition: Option<Addition>,
    pub(super) residents: Arc<Residents>,
}

impl Extension {
    /// Writes `bytes` from `offset` on, behind what was written before, and hands them back. None if that fails.
    pub async fn write<B>(self, bytes: B, offset: u64) -> Option<(Self, B)>
    where
        B: Deref<Target = [u8]> + Send + 'static,
    {
        let residents = self.residents.clone();
        let work = move || {
            let written = self.addition.as_ref().map_or(Ok(()), |addition| addition.write_at(&bytes, offset));
            (self, bytes, written)
        };
        let (extension, bytes, written) = residents.background.run(work).await?;
        written.inspect_err(|error| residents.counts.failed(bytes.len() as u64, error)).ok()?;
        Some((extension, bytes))
    }

    /// Makes what was written a part of the file, and what was not zeros. May block.
    ///
    /// # Errors
    /// When there is no memory for that.
    pub fn complete(mut self) -> io::Result<()> {
        self.addition.take().map_or(Ok(()), Addition::finish)
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        if let Some(addition) = self.addition.take() {
            self.residents.background.later(|| drop(addition));
        }
    }
}
