//! Heat: the bytes read of a granule lately, decaying by half in every half-life.
//!
//! The decay is lazy: a granule's heat is updated only at its next read, so a granule without
//! reads costs nothing. Time is counted in ticks, 64 to a half-life. Whole half-lives are shifts;
//! the rest of a half-life is looked up in a table.
//!
//! Two thresholds form a hysteresis. A granule turns hot when its heat reaches the upper one, and
//! is no longer hot if its next read finds less than the lower one left. A granule whose heat
//! hovers around one threshold thus causes one event.

/// Ticks of the clock in one half-life.
pub const TICKS_PER_HALF_LIFE: u32 = 64;

/// Bytes of one unit of heat. A level saturates at 64 GiB.
pub const UNIT: u64 = 16;

/// The thresholds and the half-life.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeatSettings {
    /// Nanoseconds in a tick; not 0.
    pub tick_ns: u64,
    /// The level, in [`UNIT`]s, at which a granule turns hot.
    pub hot: u32,
    /// The level below which a hot granule has cooled; less than `hot`.
    pub cool: u32,
}

impl HeatSettings {
    /// A granule is hot from `bytes` read within about a half-life until half of that is left.
    pub const fn new(bytes: u64, half_life_ns: u64) -> Self {
        let hot = units(bytes);
        let tick_ns = half_life_ns / TICKS_PER_HALF_LIFE as u64;
        Self {
            tick_ns: if tick_ns == 0 { 1 } else { tick_ns },
            hot: if hot == 0 { 1 } else { hot },
            cool: hot / 2,
        }
    }

    /// The tick that a moment of the monotonic clock belongs to.
    #[inline(always)]
    pub const fn tick(&self, now_ns: u64) -> u32 {
        // A plain division would put a panic for a divisor of 0 into the programs.
        match now_ns.checked_div(self.tick_ns) {
            Some(tick) => tick as u32 & STAMP,
            None => 0,
        }
    }
}

/// The heat of one granule in one word, so that a program replaces it in one store: from the low
/// end 32 bits of level, 31 bits of the tick of the last read, and whether the granule is hot.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heat(pub u64);

const STAMP: u32 = u32::MAX >> 1;

impl Heat {
    /// The level at the last read, in [`UNIT`]s.
    #[inline(always)]
    pub const fn level(self) -> u32 {
        self.0 as u32
    }

    /// Whether the granule has turned hot and no read has found it cool since.
    #[inline(always)]
    pub const fn is_hot(self) -> bool {
        self.0 >> 63 != 0
    }

    /// The level at `tick`. A tick before that of the last read, which the clock of another CPU
    /// may give, counts as the tick of the last read.
    #[inline(always)]
    pub fn level_at(self, tick: u32) -> u32 {
        let elapsed = tick.wrapping_sub((self.0 >> 32) as u32) & STAMP;
        if elapsed > STAMP / 2 { self.level() } else { decayed(self.level(), elapsed) }
    }

    /// The heat after a read of `bytes` at `tick`, and whether that read turned the granule hot.
    #[inline(always)]
    pub fn after_read(self, bytes: u64, tick: u32, settings: &HeatSettings) -> (Self, bool) {
        let rest = self.level_at(tick);
        let level = rest.saturating_add(units(bytes));
        let stayed = self.is_hot() && rest >= settings.cool;
        let turned = !stayed && level >= settings.hot;
        let hot = (stayed || turned) as u64;
        (Self(hot << 63 | (tick as u64) << 32 | level as u64), turned)
    }
}

#[inline(always)]
const fn units(bytes: u64) -> u32 {
    let units = bytes.div_ceil(UNIT);
    if units > u32::MAX as u64 { u32::MAX } else { units as u32 }
}

#[inline(always)]
fn decayed(level: u32, ticks: u32) -> u32 {
    let half_lives = ticks / TICKS_PER_HALF_LIFE;
    if half_lives >= u32::BITS {
        return 0;
    }
    let fraction = FRACTION[(ticks % TICKS_PER_HALF_LIFE) as usize];
    ((level as u64 * fraction as u64) >> 16 >> half_lives) as u32
}

/// `2^(-i/64)` in units of `2^-16`.
static FRACTION: [u32; TICKS_PER_HALF_LIFE as usize] = {
    // 2^(-1/64) in units of 2^-63.
    const STEP: u128 = 0x7e9f_0606_7a43_60ba;
    let mut table = [0; TICKS_PER_HALF_LIFE as usize];
    let (mut power, mut i) = (1u128 << 63, 0);
    while i < table.len() {
        table[i] = ((power + (1 << 46)) >> 47) as u32;
        power = (power * STEP) >> 63;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests;
