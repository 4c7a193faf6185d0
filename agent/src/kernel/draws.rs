//! The distances between byte samples, as the probe has them.

use aya::{
    Ebpf,
    maps::{Array, PerCpuArray, PerCpuValues},
};
use beamscope_probe::EXPONENTIAL_DRAWS;

use super::session::{SessionError, borrow, in_map};
use crate::sampling;

/// Gives the probe its distances between samples, and each processor a first one: if all began at 0, the first
/// allocation on each would be sampled for certain.
pub(super) fn prepare_sampling(ebpf: &mut Ebpf, interval: u64, processors: u32) -> Result<(), SessionError> {
    let draws = sampling::exponential_draws(interval);
    let mut distances: Array<_, u64> = borrow(ebpf, "EXPONENTIAL")?;
    for (index, draw) in (0..EXPONENTIAL_DRAWS).zip(&draws) {
        distances.set(index, draw, 0).map_err(in_map("EXPONENTIAL"))?;
    }
    let first = (0..processors).map(|_| draws.get(random() % draws.len()).copied().unwrap_or(interval).cast_signed());
    let first = PerCpuValues::try_from(first.collect::<Vec<i64>>()).map_err(SessionError::Processors)?;
    let mut countdown: PerCpuArray<_, i64> = borrow(ebpf, "COUNTDOWN")?;
    countdown.set(0, first, 0).map_err(in_map("COUNTDOWN"))
}

/// The standard library's only source of randomness: the keys of its hash maps.
fn random() -> usize {
    use std::hash::{BuildHasher as _, Hasher as _};
    let hash = std::hash::RandomState::new().build_hasher().finish();
    usize::try_from(hash).unwrap_or(usize::MAX)
}
