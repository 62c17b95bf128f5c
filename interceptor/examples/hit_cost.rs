//! Measures what a hit costs: lookup, pin, note for the policy, unpin. On one thread and on two.
//!
//! `cargo run --release --example hit_cost`

use std::hint::black_box;
use std::time::{Duration, Instant};

use interceptor::cache::{BlockKey, BlockPart, Cache, ObjectId};

const BLOCKS: u64 = 8192;
const LEN: usize = 4096;
const HITS: u64 = 4_000_000;

fn key(number: u64) -> BlockKey {
    BlockKey { object: ObjectId(number.into()), object_size: LEN as u64, part: BlockPart::Whole }
}

/// Reads blocks in a scattered order, and returns how long that took.
fn read(cache: &Cache, hits: u64, mut state: u64) -> Duration {
    let begun = Instant::now();
    for _ in 0..hits {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let block = cache.get(&key((state >> 33) % BLOCKS)).expect("all blocks fit");
        block.mark_read(&(0..LEN));
        black_box(&block[..8]);
    }
    begun.elapsed()
}

fn main() -> anyhow::Result<()> {
    let cache = Cache::new(256 << 20)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    for number in 0..BLOCKS {
        runtime.block_on(cache.reserve(key(number), LEN)).publish();
    }
    let once = |threads: u64| {
        let longest = std::thread::scope(|scope| {
            let cache = &cache;
            let readers: Vec<_> =
                (0..threads).map(|seed| scope.spawn(move || read(cache, HITS, seed * 7919 + 1))).collect();
            readers.into_iter().map(|reader| reader.join().expect("reading does not panic")).max()
        });
        longest.unwrap_or_default().as_nanos() as f64 / HITS as f64
    };
    println!("{BLOCKS} blocks on {}", cache.backing());
    for threads in [1, 2] {
        let mut costs: Vec<f64> = (0..5).map(|_| once(threads)).collect();
        costs.sort_by(f64::total_cmp);
        let each = costs[2];
        println!(
            "{threads} threads: {each:.0} ns a hit, {:.1} million hits a second",
            threads as f64 * 1000.0 / each
        );
    }
    Ok(())
}
