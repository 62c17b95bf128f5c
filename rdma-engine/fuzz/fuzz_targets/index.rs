//! An `.idx` log, in both widths, compared with a plain map: built at once, applied entry by
//! entry, and both.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use rdma_engine::store::{IndexBuilder, IndexChange, IndexEntry, OffsetWidth, parse_entry};
use rdma_engine_fuzz::bounded;

/// Room for late entries, for a log of any length.
const SPARE: usize = 256 << 10;

fuzz_target!(|input: &[u8]| bounded(SPARE + 64 * input.len(), || {
    let Some((&split, log)) = input.split_first() else { return };
    for width in [OffsetWidth::Four, OffsetWidth::Five] {
        let entries: Vec<_> =
            log.chunks_exact(width.entry_length()).map(|entry| parse_entry(width, entry)).collect();
        let (built, applied) = entries.split_at(usize::from(split).min(entries.len()));
        let mut builder = IndexBuilder::with_capacity(built.len());
        for &(key, change) in built {
            builder.push(key, change);
        }
        let mut index = builder.build();
        for &(key, change) in applied {
            index.apply(key, change);
        }
        let mut model: HashMap<u64, IndexEntry> = HashMap::new();
        for &(key, change) in &entries {
            match change {
                IndexChange::Written(position) => {
                    drop(model.insert(key, IndexEntry { position, deleted: false }))
                }
                IndexChange::Deleted => drop(model.entry(key).and_modify(|found| found.deleted = true)),
            }
        }
        assert_eq!(index.len(), model.len());
        for (key, _) in entries {
            assert_eq!(index.get(key), model.get(&key).copied());
        }
    }
}));
