//! Lets values of the contract stand in BPF maps, and reads them out of ring buffer records.

#![expect(unsafe_code, reason = "aya asks for an unsafe marker on types that it copies byte by byte")]

use bytemuck::{AnyBitPattern, NoUninit};

/// A value of the contract as aya's maps take it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Wire<T>(pub T);

// SAFETY: `NoUninit` and `AnyBitPattern` are derived, and the derive refuses padding and values that not every bit
// pattern makes; so `T` may be copied from and to bytes, and `repr(transparent)` gives `Wire<T>` the same layout.
unsafe impl<T: NoUninit + AnyBitPattern> aya::Pod for Wire<T> {}

/// The value at the beginning of `record`, and the bytes behind it. `None` where the record is too short.
pub fn split_record<T: AnyBitPattern>(record: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = record.split_at_checked(size_of::<T>())?;
    Some((bytemuck::try_pod_read_unaligned(head).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamscope_probe::MappingEvent;

    #[test]
    fn a_short_record_is_refused() {
        let event = MappingEvent { address: 7, ..MappingEvent::default() };
        let mut bytes = bytemuck::bytes_of(&event).to_vec();
        bytes.push(1);
        assert_eq!(split_record::<MappingEvent>(&bytes), Some((event, &[1][..])));
        assert_eq!(split_record::<MappingEvent>(&bytes[..10]), None);
    }
}
