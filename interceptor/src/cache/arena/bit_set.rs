//! A set of unit numbers.

/// Numbers below a fixed size.
#[derive(Debug)]
pub(super) struct BitSet {
    words: Vec<u64>,
    count: u32,
}

impl BitSet {
    /// An empty set for numbers below `size`.
    pub(super) fn new(size: u32) -> Self {
        Self { words: vec![0; size.div_ceil(64) as usize], count: 0 }
    }

    /// Whether a number is in the set.
    pub(super) fn contains(&self, number: u32) -> bool {
        self.words[number as usize / 64] & 1 << (number % 64) != 0
    }

    /// Adds a number, which may be in the set.
    pub(super) fn insert(&mut self, number: u32) {
        self.count += u32::from(!self.contains(number));
        self.words[number as usize / 64] |= 1 << (number % 64);
    }

    /// Removes a number, which need not be in the set.
    pub(super) fn remove(&mut self, number: u32) {
        self.count -= u32::from(self.contains(number));
        self.words[number as usize / 64] &= !(1 << (number % 64));
    }

    /// The lowest number.
    pub(super) fn first(&self) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let word = self.words.iter().position(|&word| word != 0)?;
        Some(word as u32 * 64 + self.words[word].trailing_zeros())
    }

    /// The highest multiple of `alignment` (a power of two up to 64) at which a run of `len`
    /// numbers of the set begins.
    pub(super) fn last_run(&self, len: u32, alignment: u32) -> Option<u32> {
        if self.count < len || len == 0 {
            return None;
        }
        let words = self.words.iter().enumerate().rev().filter(|(_, word)| **word != 0);
        let starts = words.flat_map(|(word, _)| {
            (0..64 / alignment).rev().map(move |step| word as u32 * 64 + step * alignment)
        });
        let end = self.words.len() as u32 * 64;
        starts
            .filter(|start| start.checked_add(len).is_some_and(|past| past <= end))
            .find(|&start| (start..start + len).all(|number| self.contains(number)))
    }
}
