//! Epochs of made-up files with a simulated cache.

use super::*;
use proptest::prelude::*;

/// A cache that treats files that were fetched ahead as the real one does.
struct Simulation {
    epochs: Epochs,
    capacity: u64,
    /// The cached files, least recently used first, each with whether it was read, and the bytes
    /// that had been admitted by then.
    files: VecDeque<(u64, bool, u64)>,
    bytes: u64,
    unread: u64,
    admitted: u64,
    reads: u64,
    hits: u64,
    fetched: u64,
    wasted: u64,
}

fn size(file: u64) -> u64 {
    4096 + file * 7919 % 126_000
}

fn total(files: u64) -> u64 {
    (0..files).map(size).sum()
}

fn shuffled(files: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..files).collect();
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    for i in (1..order.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}

impl Simulation {
    fn new(capacity: u64) -> Self {
        Self {
            epochs: Epochs::new(capacity, capacity / 16),
            capacity,
            files: VecDeque::new(),
            bytes: 0,
            unread: 0,
            admitted: 0,
            reads: 0,
            hits: 0,
            fetched: 0,
            wasted: 0,
        }
    }

    fn run(&mut self, order: impl IntoIterator<Item = u64>) {
        for file in order {
            self.reads += 1;
            let place = self.files.iter().position(|(other, ..)| *other == file);
            match place.and_then(|place| self.files.remove(place)) {
                Some((_, was_read, _)) => {
                    self.hits += 1;
                    if !was_read {
                        self.unread -= size(file);
                        self.epochs.stats().used(size(file));
                    }
                    self.files.push_back((file, true, self.admitted));
                }
                None => self.admit(file, true),
            }
            let hit = place.is_some();
            for file in self.epochs.observe(file, size(file)) {
                match self.files.iter().any(|(other, ..)| *other == file) {
                    true => self.epochs.fetching(file, 0),
                    false => {
                        self.fetched += size(file);
                        self.epochs.fetching(file, size(file));
                        self.admit(file, false);
                    }
                }
            }
            self.epochs.answered(hit);
        }
    }

    fn admit(&mut self, file: u64, is_read: bool) {
        while self.bytes + size(file) > self.capacity {
            let unread = self.files.iter().position(|(_, is_read, _)| !is_read);
            let overdue = |place: &usize| {
                self.unread > self.capacity / 4 || self.admitted - self.files[*place].2 > self.capacity
            };
            let read = self.files.iter().position(|(_, is_read, _)| *is_read);
            let victim = unread.filter(overdue).or(read).or(unread).unwrap();
            let (gone, was_read, _) = self.files.remove(victim).unwrap();
            self.bytes -= size(gone);
            if !was_read {
                self.unread -= size(gone);
                self.wasted += size(gone);
                self.epochs.stats().wasted(size(gone));
            }
        }
        self.admitted += size(file);
        self.bytes += size(file);
        self.unread += if is_read { 0 } else { size(file) };
        self.files.push_back((file, is_read, self.admitted));
    }

    /// The share of the prefetched bytes that was not read.
    fn waste(&self) -> f64 {
        (self.wasted + self.unread) as f64 / self.fetched.max(1) as f64
    }

    /// The hit ratio of these reads alone.
    fn hits_of(&mut self, order: impl IntoIterator<Item = u64>) -> f64 {
        let (reads, hits) = (self.reads, self.hits);
        self.run(order);
        (self.hits - hits) as f64 / (self.reads - reads) as f64
    }
}

#[test]
fn the_same_order_again_is_fetched_ahead() {
    let mut simulation = Simulation::new(total(2000) / 4);
    simulation.run(shuffled(2000, 1));
    let hits = simulation.hits_of(shuffled(2000, 1));
    assert!(hits > 0.95, "{hits}");
    assert!(simulation.waste() < 0.05, "{}", simulation.waste());
}

#[test]
fn workers_that_share_an_order_in_batches_are_followed() {
    // Eight workers, each with a batch of 32 files of its own, side by side.
    let order = |seed| {
        let files = shuffled(4096, seed);
        let at = |i: usize| files[i / 256 * 256 + i % 8 * 32 + i % 256 / 8];
        (0..4096).map(at).collect::<Vec<_>>()
    };
    let mut simulation = Simulation::new(total(4096) / 4);
    simulation.run(order(1));
    let hits = simulation.hits_of(order(1));
    assert!(hits > 0.9, "{hits}");
    assert!(simulation.waste() < 0.1, "{}", simulation.waste());
}

#[test]
fn the_end_of_a_newly_shuffled_epoch_is_fetched_ahead() {
    let capacity = total(2000) / 2;
    let mut simulation = Simulation::new(capacity);
    simulation.run(shuffled(2000, 1));
    let mut hits = 0.0;
    for seed in 2..6 {
        hits = simulation.hits_of(shuffled(2000, seed));
    }
    let mut without = Simulation::new(capacity);
    without.epochs.budget = 0;
    (1..5).for_each(|seed| without.run(shuffled(2000, seed)));
    let before = without.hits_of(shuffled(2000, 5));
    assert!(hits > before + 0.05, "{hits} with predictions, {before} without");
    assert!(simulation.waste() < 0.25, "{}", simulation.waste());
}

#[test]
fn popular_files_make_no_epochs() {
    let mut simulation = Simulation::new(total(2000) / 4);
    let mut state = 1u64;
    simulation.run((0..20_000).map(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let uniform = (state >> 11) as f64 / (1u64 << 53) as f64;
        (2000.0 * uniform.powi(3)) as u64
    }));
    assert_eq!(simulation.fetched, 0);
}

#[test]
fn a_prediction_that_fails_is_not_repeated_for_a_while() {
    let mut simulation = Simulation::new(total(2000) / 4);
    let order = shuffled(2000, 1);
    simulation.run(order.iter().copied());
    for _ in 0..20 {
        // Only the first part of the order repeats; another file follows each time.
        simulation.run((0..1000).flat_map(|i| [order[i], 10_000 + i as u64]));
        simulation.run(shuffled(2000, 9));
    }
    assert!(simulation.wasted * 4 < total(2000) * 20, "{}", simulation.wasted);
}

#[test]
fn memory_is_bounded() {
    let mut epochs = Epochs::new(1 << 30, 1 << 26);
    for file in 0..MAX_FILES as u64 + 1000 {
        assert!(epochs.observe(file, 1000).is_empty());
    }
    assert!(epochs.seen.len() <= MAX_FILES && epochs.present.len() <= MAX_FILES);
    let files = MAX_FILES as f64;
    let table = (MAX_FILES * 8 / 7).next_power_of_two() * (size_of::<(u64, LastRead)>() + 1);
    assert!(table as f64 / files + 2.0 * 8.0 <= 60.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn waste_is_bounded_whatever_the_sizes(
        files in 200u64..1500,
        share in 0.1f64..1.5,
        seeds in prop::collection::vec(0u64..3, 2..6),
    ) {
        let capacity = ((total(files) as f64 * share) as u64).max(16 << 20);
        let mut simulation = Simulation::new(capacity);
        for seed in seeds {
            simulation.run(shuffled(files, seed));
        }
        // What a few wrong predictions at the beginning may cost.
        let allowed = simulation.fetched / 4 + capacity / 16;
        let lost = simulation.wasted + simulation.unread;
        prop_assert!(lost <= allowed, "{lost} of {} wasted", simulation.fetched);
    }
}
