//! Seeded random numbers: xorshift64*, Box–Muller.

/// A generator.
pub struct Random(u64);

impl Random {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Even in (from, to).
    pub fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * (((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64)
    }

    /// Mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.between(0.0, 1.0).ln()
    }

    /// Mean 0, standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.between(0.0, 1.0).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.between(0.0, 1.0)).cos()
    }
}
