//! Noise that every process computes alike: a function of seed, device and tick.
//!
//! The counter carries noise as a level that wobbles around the truth, not as a walk away from
//! it: one tick's energy has the wanted standard deviation, and a long sum is off by less than
//! two ticks' worth however long it is. (Independent noise a tick would be off by 0.15 % after a
//! minute.)

/// The level is cut at this many of its standard deviations.
const CUT: f64 = 3.0;

/// The largest difference of two neighbouring levels, in standard deviations of one tick.
pub(crate) const LARGEST_STEP: f64 = 2.0 * CUT * std::f64::consts::FRAC_1_SQRT_2;

/// What is noisy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Channel {
    Counter = 1,
    Average = 2,
    Instant = 3,
}

/// A number of mean 0, standard deviation 1, at most [`CUT`] from 0; the same for the same
/// arguments, independent of all others.
pub(crate) fn standard(seed: u64, device: usize, channel: Channel, tick: u64) -> f64 {
    let mut state = mix(seed) ^ mix(((device as u64) << 8) | channel as u64).rotate_left(17);
    state = mix(state ^ mix(tick));
    // The sum of twelve uniforms has variance 1 and the shape of a normal to three deviations.
    let mut sum = -6.0;
    for _ in 0..12 {
        state = mix(state);
        sum += (state >> 11) as f64 / (1_u64 << 53) as f64;
    }
    sum.clamp(-CUT, CUT)
}

/// Standard deviation of the counter's level when a tick's energy is to have 1.
pub(crate) const LEVEL: f64 = std::f64::consts::FRAC_1_SQRT_2;

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_mean_0_deviation_1_and_no_memory() {
        let values: Vec<f64> = (0..20_000)
            .map(|k| standard(1, 0, Channel::Counter, k))
            .collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / count;
        let lag_1 = values.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / count;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
        assert!(lag_1.abs() < 0.03, "correlation of neighbours {lag_1}");
    }

    #[test]
    fn devices_and_seeds_differ() {
        let first = standard(1, 0, Channel::Counter, 7);
        assert_ne!(first, standard(1, 1, Channel::Counter, 7));
        assert_ne!(first, standard(2, 0, Channel::Counter, 7));
        assert_ne!(first, standard(1, 0, Channel::Instant, 7));
        assert_eq!(first, standard(1, 0, Channel::Counter, 7));
    }
}
